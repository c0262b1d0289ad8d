"""The inverse kinematics of a simulated base: from a twist of the tool to the speeds of the joints."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.urdf import load_urdf

_DAMPING = 0.02


class TwistKinematics:
    """One arm from its URDF, whose root is the base. Not thread-safe: it belongs to the physics thread.

    Args:
        low, high: [N] rad; a joint on its limit is left out of a motion beyond it.
    """

    def __init__(self, robot: RobotDescription, low: np.ndarray, high: np.ndarray) -> None:
        spec = mujoco.MjSpec.from_string(load_urdf(robot.urdf))
        spec.compiler.fusestatic = False  # the TCP is a link of its own
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(robot.joint_prefix + name) for name in robot.joints]
        self._qpos, self._dof = (np.array([getattr(joint, key)[0] for joint in joints]) for key in ("qposadr", "dofadr"))
        self._tcp = self._model.body(robot.tcp_frame).id
        self._low, self._high = low, high
        self._whole = np.zeros((6, self._model.nv))

    def speeds(self, position_rad: np.ndarray, twist: np.ndarray) -> np.ndarray:
        """Returns the least joint speeds [N] rad/s that move the TCP with `twist` [6] (m/s, rad/s, axes of the base), damped."""
        data = self._data
        data.qpos[self._qpos] = position_rad
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_jacBody(self._model, data, self._whole[:3], self._whole[3:], self._tcp)
        jacobian = self._whole[:, self._dof]
        speeds = _solve(jacobian, twist)
        blocked = ((position_rad <= self._low) & (speeds < 0)) | ((position_rad >= self._high) & (speeds > 0))
        return _solve(jacobian * ~blocked, twist) if blocked.any() else speeds


def _solve(jacobian: np.ndarray, twist: np.ndarray) -> np.ndarray:
    return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6), twist)
