"""Where things are on each robot's table: areas, cameras, how its hands work. One entry an embodiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import cos, pi, sin

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import ConfigError, did_you_mean

Area = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class CameraPose:
    """A camera in a body of the scene: position (m), axes of the picture (x right, y up) in the body's frame, vertical field of view."""

    body: str
    position: str
    axes: str
    fovy_deg: float


@dataclass(frozen=True)
class Reach:
    """How one arm works over the table, all in `base_link`.

    `heading_rad`: where its hand points when it reaches straight ahead; `carry_m`, `retreat_m`: heights of the TCP with a load and after
    the work; `width_max_m`: opening of the gripper; `rest_m`: where a second hand waits.
    """

    heading_rad: float = 0.0
    width_max_m: float = 0.08
    carry_m: float = 0.17
    retreat_m: float = 0.22
    speed_m_s: float = 0.38
    gripper_m_s: float = 0.10
    rest_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ArmNames:
    """What an arm's parts are called in the compiled scene."""

    joints: tuple[str, ...]
    fingers: tuple[str, str]
    site: str


@dataclass(frozen=True)
class Layout:
    """One table.

    Areas are ((x low, x high), (y low, y high)) in m, for centres; `apart_m` is the room between two containers, a block and a container,
    two blocks; `meeting_m` is where two hands meet; `kinds` are the kinds of tasks (`tasks.KINDS`) that its arms can do.
    """

    block_area_m: Area
    container_area_m: Area
    cameras: Mapping[str, CameraPose]
    arms: Mapping[str, Reach]
    apart_m: tuple[float, float, float] = (0.17, 0.13, 0.09)
    meeting_m: tuple[float, float, float] = (0.0, 0.0, 0.15)
    kinds: tuple[str, ...] = ("place", "stack")

    @property
    def bimanual(self) -> bool:
        return len(self.arms) > 1

    @property
    def drawn(self) -> tuple[str, ...]:
        """The kinds that tasks are drawn from where nobody asks for one."""
        return ("bimanual", "place") if self.bimanual else ("place",)


def _front(x: float, z: float, fovy_deg: float, down: float = 0.49) -> CameraPose:
    """Opposite the robot, looking back at it and down."""
    return CameraPose("world", f"{x} 0 {z}", f"0 1 0 -{down} 0 {(1 - down**2) ** 0.5:.3f}", fovy_deg)


def _wrist(tcp: str) -> CameraPose:
    """On the hand, above the fingers' plane, looking along them."""
    return CameraPose(tcp, "0.07 0 -0.0834", "0 1 0 0.988 0 0.156", 75.0)


_KINOVA = Reach(width_max_m=0.085, speed_m_s=0.30, gripper_m_s=0.05)
_PIPER = Reach(width_max_m=0.07, carry_m=0.15, retreat_m=0.19, speed_m_s=0.30, gripper_m_s=0.05)
_VIPERX = Reach(width_max_m=0.08, carry_m=0.13, retreat_m=0.17, speed_m_s=0.30, gripper_m_s=0.05)

LAYOUTS: dict[str, Layout] = {
    "franka": Layout(
        ((0.35, 0.65), (-0.20, 0.20)),
        ((0.38, 0.64), (-0.28, 0.28)),
        {
            "front": CameraPose("world", "1.38 0 0.68", "0 1 0 -0.49 0 0.872", 42.5),
            "wrist": CameraPose("robot0_hand", "0.07 0 0.02", "0 1 0 0.988 0 0.156", 75.0),
        },
        {"arm": Reach()},
        kinds=("place", "stack", "drawer", "clear"),
    ),
    "kinova": Layout(
        ((0.35, 0.60), (-0.20, 0.20)),
        ((0.38, 0.60), (-0.28, 0.28)),
        {"front": _front(1.30, 0.70, 42.5, 0.53), "wrist": _wrist("tcp")},
        {"arm": _KINOVA},
    ),
    "piper": Layout(
        ((0.22, 0.38), (-0.16, 0.16)),
        ((0.24, 0.36), (-0.20, 0.20)),
        {"front": _front(1.00, 0.62, 42.0, 0.55), "wrist": _wrist("tcp")},
        {"arm": _PIPER},
        apart_m=(0.165, 0.12, 0.08),
    ),
    "aloha": Layout(
        ((-0.19, 0.22), (-0.16, 0.16)),
        ((-0.15, 0.20), (-0.03, 0.03)),
        {"front": _front(0.78, 0.62, 58.0, 0.62), "left_wrist": _wrist("left_tcp"), "right_wrist": _wrist("right_tcp")},
        {
            "left": replace(_VIPERX, heading_rad=-pi / 2, rest_m=(0.0, 0.22, 0.20)),
            "right": replace(_VIPERX, heading_rad=pi / 2, rest_m=(0.0, -0.22, 0.20)),
        },
        apart_m=(0.17, 0.12, 0.08),
        meeting_m=(0.0, 0.0, 0.15),
        # A ViperX does not reach high enough over the middle of its table to stack.
        kinds=("place", "bimanual"),
    ),
    "aloha_piper": Layout(
        ((0.08, 0.32), (-0.17, 0.17)),
        ((0.09, 0.31), (-0.03, 0.03)),
        {"front": _front(0.92, 0.66, 52.0, 0.66), "left_wrist": _wrist("left_tcp"), "right_wrist": _wrist("right_tcp")},
        {
            "left": replace(_PIPER, heading_rad=-pi / 4, rest_m=(0.22, 0.26, 0.20)),
            "right": replace(_PIPER, heading_rad=pi / 4, rest_m=(0.22, -0.26, 0.20)),
        },
        apart_m=(0.165, 0.115, 0.075),
        meeting_m=(0.20, 0.0, 0.15),
        kinds=("place", "bimanual"),
    ),
}
LAYOUTS["piper_joints"] = LAYOUTS["piper"]


def layout_of(embodiment: str) -> Layout:
    """Returns the table of an embodiment. Raises ConfigError: it has none."""
    if embodiment not in LAYOUTS:
        raise ConfigError(f"the simulated table knows no embodiment '{embodiment}'; {did_you_mean(embodiment, LAYOUTS)}")
    return LAYOUTS[embodiment]


def arm_names(embodiment: Embodiment) -> dict[str, ArmNames]:
    """Returns arm -> names in the scene: franky-sim's for the Franka, the URDF's for the others."""
    if embodiment.name == "franka":
        joints = tuple(f"robot0_{joint}" for joint in embodiment.robots["arm"].joints)
        return {"arm": ArmNames(joints, ("robot0_finger_joint1", "robot0_finger_joint2"), "tcp")}
    names = {}
    for arm, robot in embodiment.robots.items():
        prefix = robot.joint_prefix
        fingers = (f"{prefix}finger_left_joint", f"{prefix}finger_right_joint")
        names[arm] = ArmNames(tuple(prefix + joint for joint in robot.joints), fingers, robot.tcp_frame)
    return names


def down_rotvec(heading_rad: float) -> tuple[float, float, float]:
    """The rotation vector of a hand that points straight down with its x axis along `heading_rad`."""
    return pi * cos(heading_rad / 2), pi * sin(heading_rad / 2), 0.0
