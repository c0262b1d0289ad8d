"""Reads and writes the scene's state in MuJoCo's vectors."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_ros.core.rotations import matrix_to_quat
from vla_ros.sim.placement import Placement
from vla_ros.sim.scene import ROBOT
from vla_ros.sim.tasks import BLOCKS, CONTAINERS
from vla_ros.sim.world import BLOCK_M, World

JOINTS = tuple(f"{ROBOT}fr3_joint{i}" for i in range(1, 8))
FINGERS = tuple(f"{ROBOT}finger_joint{i}" for i in (1, 2))


class SceneState:
    """Addresses of one compiled scene: `arm`, `fingers` index qpos, `arm_dof`, `finger_dof` index qvel."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.arm = np.array([model.joint(name).qposadr[0] for name in JOINTS])
        self.arm_dof = np.array([model.joint(name).dofadr[0] for name in JOINTS])
        self.fingers = np.array([model.joint(name).qposadr[0] for name in FINGERS])
        self.finger_dof = np.array([model.joint(name).dofadr[0] for name in FINGERS])
        self._free = {name: int(model.joint(name).qposadr[0]) for name in BLOCKS}
        self._slides = {name: [int(model.joint(f"{name} {axis}").qposadr[0]) for axis in "xy"] for name in CONTAINERS}
        self._velocity = {name: slice(int(model.joint(name).dofadr[0]), int(model.joint(name).dofadr[0]) + 6) for name in BLOCKS}
        self._velocity |= {name: [int(model.joint(f"{name} {axis}").dofadr[0]) for axis in "xy"] for name in CONTAINERS}
        self._tcp = int(model.site("tcp").id)

    def write(self, data: mujoco.MjData, placement: Placement, arm_rad: np.ndarray, gripper_width_m: float) -> None:
        """Puts everything in its place, at rest; call `mj_forward` afterwards."""
        data.qvel[:] = 0
        data.qacc_warmstart[:] = 0
        data.qpos[self.arm] = arm_rad
        data.qpos[self.fingers] = gripper_width_m / 2
        for name in CONTAINERS:
            data.qpos[self._slides[name]] = placement.position[name]
        for name in BLOCKS:
            start, yaw = self._free[name], placement.yaw[name]
            data.qpos[start : start + 3] = *placement.position[name], BLOCK_M / 2
            data.qpos[start + 3 : start + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)

    def shift(self, data: mujoco.MjData, name: str, dx_m: float, dy_m: float) -> None:
        """Moves one object along the table and stops it."""
        address = self._slides[name] if name in CONTAINERS else slice(self._free[name], self._free[name] + 2)
        data.qpos[address] += (dx_m, dy_m)
        data.qvel[self._velocity[name]] = 0

    def gripper_width_m(self, data: mujoco.MjData) -> float:
        """Opening between the fingers."""
        return float(data.qpos[self.fingers].sum())

    def world(self, data: mujoco.MjData) -> World:
        """Reads everything; needs `mj_kinematics` after the last change of qpos."""
        position = {name: np.array([*data.qpos[self._slides[name]], 0.0]) for name in CONTAINERS}
        yaw = {}
        for name in BLOCKS:
            start = self._free[name]
            position[name] = data.qpos[start : start + 3].copy()
            yaw[name] = _yaw(data.qpos[start + 3 : start + 7])
        tcp = data.site_xmat[self._tcp].reshape(3, 3)
        return World(data.site_xpos[self._tcp].copy(), matrix_to_quat(tcp), self.gripper_width_m(data), position, yaw)


def _yaw(quat_wxyz: np.ndarray) -> float:
    """The heading (rad) of the block's axis that lies nearest to the table's plane; a tipped block has one as well."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat_wxyz)
    axes = matrix.reshape(3, 3)
    flat = int(np.argmin(np.abs(axes[2])))
    return float(np.arctan2(axes[1, flat], axes[0, flat]))
