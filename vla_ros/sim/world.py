"""What an expert or a judge knows of the table at one instant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BLOCK_M = 0.04
PLATE_RADIUS_M = 0.075
PLATE_TOP_M = 0.010
BOWL_RADIUS_M = 0.066
BOWL_FLOOR_M = 0.008
BOWL_RIM_M = 0.042


@dataclass(frozen=True)
class World:
    """All poses in `base_link`.

    `tcp_position` [3] m, `tcp_quat_xyzw` [4], `gripper_width_m` between the fingers;
    `position` object -> [3] m, the centre of a block, the foot of a container; `yaw` block -> rad, of its side nearest to the horizontal.
    """

    tcp_position: np.ndarray
    tcp_quat_xyzw: np.ndarray
    gripper_width_m: float
    position: dict[str, np.ndarray]
    yaw: dict[str, float]

    def with_object(self, name: str, position: np.ndarray, yaw: float = 0.0) -> World:
        """The same world with one object elsewhere."""
        return replace(self, position={**self.position, name: position}, yaw={**self.yaw, name: yaw} if name in self.yaw else self.yaw)


def resting_height_m(goal: str, position: dict[str, np.ndarray]) -> float:
    """The height (m) of a block's centre when it lies in or on `goal`."""
    floor = {"plate": PLATE_TOP_M, "bowl": BOWL_FLOOR_M}.get(goal)
    return (floor if floor is not None else position[goal][2] + BLOCK_M / 2) + BLOCK_M / 2
