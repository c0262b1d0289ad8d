"""Reads and writes the scene's state in MuJoCo's vectors."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from vla_ros.core.rotations import matrix_to_quat
from vla_ros.sim.drawer import SPOT_M
from vla_ros.sim.layout import ArmNames
from vla_ros.sim.placement import Placement
from vla_ros.sim.tasks import BAR, BLOCKS, CONTAINERS, DRAWER, TRAY
from vla_ros.sim.world import BAR_M, BLOCK_M, Hand, World

RESTING_M = {**dict.fromkeys(BLOCKS, BLOCK_M / 2), BAR: BAR_M[2] / 2, TRAY: 0.0}


class SceneState:
    """Addresses of one compiled scene.

    Args:
        model: the scene. arms: arm -> names of its parts (`layout.arm_names`).

    Attributes:
        arm, fingers (qpos) and arm_dof, finger_dof (qvel): arm -> indices.
    """

    def __init__(self, model: mujoco.MjModel, arms: Mapping[str, ArmNames]) -> None:
        self.model = model
        self.arm = {name: np.array([model.joint(joint).qposadr[0] for joint in arm.joints]) for name, arm in arms.items()}
        self.arm_dof = {name: np.array([model.joint(joint).dofadr[0] for joint in arm.joints]) for name, arm in arms.items()}
        self.fingers = {name: np.array([model.joint(joint).qposadr[0] for joint in arm.fingers]) for name, arm in arms.items()}
        self.finger_dof = {name: np.array([model.joint(joint).dofadr[0] for joint in arm.fingers]) for name, arm in arms.items()}
        bodies = {model.body(number).name for number in range(model.nbody)}
        loose = [name for name in (*BLOCKS, BAR, TRAY) if name in bodies]
        slides = {name: name for name in CONTAINERS if name in bodies} | ({DRAWER: "cabinet"} if DRAWER in bodies else {})
        self._free = {name: int(model.joint(name).qposadr[0]) for name in loose}
        self._slides = {name: [int(model.joint(f"{body} {axis}").qposadr[0]) for axis in "xy"] for name, body in slides.items()}
        self._velocity = {name: slice(int(model.joint(name).dofadr[0]), int(model.joint(name).dofadr[0]) + 6) for name in loose}
        self._velocity |= {name: [int(model.joint(f"{body} {axis}").dofadr[0]) for axis in "xy"] for name, body in slides.items()}
        self._drawer = int(model.joint(DRAWER).qposadr[0]) if DRAWER in bodies else None
        self._tcp = {name: int(model.site(arm.site).id) for name, arm in arms.items()}

    @property
    def objects(self) -> tuple[str, ...]:
        """What lies on this table."""
        return (*self._free, *self._slides)

    def write(self, data: mujoco.MjData, placement: Placement, arms_rad: Mapping[str, np.ndarray], widths_m: Mapping[str, float]) -> None:
        """Puts everything in its place, at rest; call `mj_forward` afterwards."""
        data.qvel[:] = 0
        data.qacc_warmstart[:] = 0
        for name, position_rad in arms_rad.items():
            data.qpos[self.arm[name]] = position_rad
            data.qpos[self.fingers[name]] = widths_m[name] / 2
        for name, slide in self._slides.items():
            data.qpos[slide] = placement.position[name]
        if self._drawer is not None:
            data.qpos[self._drawer] = placement.opening_m
        for name, start in self._free.items():
            yaw = placement.yaw[name]
            data.qpos[start : start + 3] = *placement.position[name], RESTING_M[name]
            data.qpos[start + 3 : start + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)

    def shift(self, data: mujoco.MjData, name: str, dx_m: float, dy_m: float) -> None:
        """Moves one object along the table and stops it."""
        address = self._slides[name] if name in self._slides else slice(self._free[name], self._free[name] + 2)
        data.qpos[address] += (dx_m, dy_m)
        data.qvel[self._velocity[name]] = 0

    def gripper_width_m(self, data: mujoco.MjData, arm: str) -> float:
        """Opening between the fingers."""
        return float(data.qpos[self.fingers[arm]].sum())

    def hand(self, data: mujoco.MjData, arm: str) -> Hand:
        """Where a hand is."""
        turn = data.site_xmat[self._tcp[arm]].reshape(3, 3)
        return Hand(data.site_xpos[self._tcp[arm]].copy(), matrix_to_quat(turn), self.gripper_width_m(data, arm))

    def world(self, data: mujoco.MjData) -> World:
        """Reads everything, as the first arm sees it; needs `mj_kinematics` after the last change of qpos."""
        position = {name: np.array([*data.qpos[slide], 0.0]) for name, slide in self._slides.items()}
        yaw, tilt, opening_m = {}, {}, 0.0
        if self._drawer is not None:
            opening_m = float(data.qpos[self._drawer])
            position[DRAWER][0] += SPOT_M + opening_m
        for name, start in self._free.items():
            position[name] = data.qpos[start : start + 3].copy()
            turn = data.qpos[start + 3 : start + 7]
            yaw[name] = _yaw(turn) if name in BLOCKS else _heading(turn)
            if name == TRAY:
                tilt[name] = _tilt(turn)
        hands = {name: self.hand(data, name) for name in self.arm}
        first = next(iter(hands.values()))
        return World(first.position, first.quat_xyzw, first.width_m, position, yaw, hands if len(hands) > 1 else {}, tilt, opening_m)


def _yaw(quat_wxyz: np.ndarray) -> float:
    """The heading (rad) of the block's axis that lies nearest to the table's plane; a tipped block has one as well."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat_wxyz)
    axes = matrix.reshape(3, 3)
    flat = int(np.argmin(np.abs(axes[2])))
    return float(np.arctan2(axes[1, flat], axes[0, flat]))


def _heading(quat_wxyz: np.ndarray) -> float:
    """The heading (rad) of the body's x axis."""
    w, x, y, z = quat_wxyz
    return float(np.arctan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z)))


def _tilt(quat_wxyz: np.ndarray) -> float:
    """The angle (rad) between the body's z axis and the vertical."""
    _, x, y, _ = quat_wxyz
    return float(np.arccos(np.clip(1 - 2 * (x * x + y * y), -1.0, 1.0)))
