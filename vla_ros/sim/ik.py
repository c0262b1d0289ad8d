"""Joint positions for a TCP pose in a compiled scene, for experts whose robot is driven by joints."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_ros.core.rotations import conjugate, multiply, quat_to_rotvec, rotvec_to_quat
from vla_ros.sim.layout import ArmNames

_DAMPING = 1e-3
_ITERATIONS = 8
_STEP_RAD = 0.3
_CLOSE = 5e-4  # m and rad


class SceneIk:
    """One arm of a scene, by damped least squares from where it is.

    Args:
        model: the scene. names: of the arm. low, high: [N] rad.
    """

    def __init__(self, model: mujoco.MjModel, names: ArmNames, low: np.ndarray, high: np.ndarray) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self._qpos = np.array([model.joint(joint).qposadr[0] for joint in names.joints])
        self._dof = np.array([model.joint(joint).dofadr[0] for joint in names.joints])
        self._site = int(model.site(names.site).id)
        self._low, self._high = low, high
        self._jacobian = np.zeros((6, model.nv))

    def solve(self, start_rad: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Returns joint positions [N] rad near `start_rad` with the TCP at `pose` [6] (m, rotation vector rad), or as near as they come."""
        position, target = np.array(start_rad), rotvec_to_quat(np.asarray(pose[3:]))
        for _ in range(_ITERATIONS):
            error = self._error(position, pose[:3], target)
            if np.abs(error).max() < _CLOSE:
                break
            mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
            jacobian = self._jacobian[:, self._dof]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING * np.eye(6), error)
            position = np.clip(position + np.clip(step, -_STEP_RAD, _STEP_RAD), self._low, self._high)
        return position

    def _error(self, position: np.ndarray, target_m: np.ndarray, target_quat: np.ndarray) -> np.ndarray:
        data = self._data
        data.qpos[self._qpos] = position
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.site_xmat[self._site])
        turn = quat_to_rotvec(multiply(target_quat, conjugate(quat[[1, 2, 3, 0]])))
        return np.append(target_m - data.site_xpos[self._site], turn)
