"""What an expert or a judge knows of the table at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vla_ros.sim.drawer import FLOOR_M as DRAWER_FLOOR_M
from vla_ros.sim.drawer import INSIDE_M, RIM_M, SPOT_TO_GRIP_M
from vla_ros.sim.tasks import DRAWER

BLOCK_M = 0.04
PLATE_RADIUS_M = 0.075
PLATE_TOP_M = 0.010
BOWL_RADIUS_M = 0.066
BOWL_FLOOR_M = 0.008
BOWL_RIM_M = 0.042
PILE_M = 2.5 * BLOCK_M  # how far above the bowl's floor a block may lie on others
BAR_M = (0.025, 0.16, 0.03)  # x, y, z
TRAY_M = (0.16, 0.20, 0.008)
HANDLE_M = (0.022, 0.05, 0.034)  # at both ends of the tray's y axis
BAR_GRIP_M = 0.055  # from its centre to where a hand takes it
TRAY_GRIP_M = TRAY_M[1] / 2 + 0.03
TRAY_GRIP_HEIGHT_M = 0.024  # above its foot


@dataclass(frozen=True)
class Hand:
    """`position` [3] m and `quat_xyzw` [4] of the TCP, `width_m` between the fingers."""

    position: np.ndarray
    quat_xyzw: np.ndarray
    width_m: float


@dataclass(frozen=True)
class World:
    """All poses in `base_link`, seen by one arm; `arms` are the hands of all by name where there are two.

    `tcp_position` [3] m, `tcp_quat_xyzw` [4], `gripper_width_m` between the fingers;
    `position` object -> [3] m, the centre of a block or bar, the foot of a container or tray, where a block goes in a drawer;
    `yaw` block, bar or tray -> rad, of its side nearest to the horizontal (the bar's and the tray's x axis);
    `tilt` tray -> rad, out of the horizontal; `opening_m` how far the drawer is pulled out, 0 where there is none.
    """

    tcp_position: np.ndarray
    tcp_quat_xyzw: np.ndarray
    gripper_width_m: float
    position: dict[str, np.ndarray]
    yaw: dict[str, float]
    arms: Mapping[str, Hand] = field(default_factory=dict)
    tilt: Mapping[str, float] = field(default_factory=dict)
    opening_m: float = 0.0

    @property
    def hands(self) -> list[Hand]:
        """All of them."""
        return list(self.arms.values()) or [Hand(self.tcp_position, self.tcp_quat_xyzw, self.gripper_width_m)]

    def seen_by(self, hand: Hand) -> World:
        """The same world with `hand` as the one that works."""
        return replace(self, tcp_position=hand.position, tcp_quat_xyzw=hand.quat_xyzw, gripper_width_m=hand.width_m)

    def with_object(self, name: str, position: np.ndarray, yaw: float = 0.0) -> World:
        """The same world with one object elsewhere."""
        return replace(self, position={**self.position, name: position}, yaw={**self.yaw, name: yaw} if name in self.yaw else self.yaw)


def resting_height_m(goal: str, position: dict[str, np.ndarray]) -> float:
    """The height (m) of a block's centre when it lies in or on `goal`."""
    floor = {"plate": PLATE_TOP_M, "bowl": BOWL_FLOOR_M, "drawer": DRAWER_FLOOR_M}.get(goal)
    return (floor if floor is not None else position[goal][2] + BLOCK_M / 2) + BLOCK_M / 2


def in_drawer(world: World, block: str, below_m: float = RIM_M + BLOCK_M / 2) -> bool:
    """Whether a block's centre is between the walls of the drawer and below a height."""
    x, y, z = world.position[block] - world.position[DRAWER]
    (back, front), half_y = INSIDE_M
    return -back < x < front and abs(y) < half_y and z < below_m


def grip_point(world: World) -> np.ndarray:
    """Where a hand takes the drawer: [3] m."""
    return world.position[DRAWER] + SPOT_TO_GRIP_M
