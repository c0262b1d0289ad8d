"""Joint positions for a TCP pose in a compiled scene, for experts whose robot is driven by joints."""

from __future__ import annotations

import mujoco
import numpy as np

from vla_ros.core.rotations import rotvec_to_quat
from vla_ros.sim.layout import ArmNames

_DAMPING = 1e-3 * np.eye(6)
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
        self._error, self._quat, self._turn = np.empty(6), np.empty(4), np.empty(3)

    def solve(self, start_rad: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Returns joint positions [N] rad near `start_rad` with the TCP at `pose` [6] (m, rotation vector rad), or as near as they come."""
        position, target = np.array(start_rad), rotvec_to_quat(np.asarray(pose[3:]))[[3, 0, 1, 2]]
        error, jacobian = self._error, self._jacobian
        for _ in range(_ITERATIONS):
            self._measure(position, pose[:3], target)
            if max(error.max(), -error.min()) < _CLOSE:
                break
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            own = jacobian[:, self._dof]
            step = own.T @ np.linalg.solve(own @ own.T + _DAMPING, error)
            # np.clip costs as much as the rest of an iteration
            position += np.minimum(np.maximum(step, -_STEP_RAD), _STEP_RAD)
            position = np.minimum(np.maximum(position, self._low), self._high)
        return position

    def _measure(self, position: np.ndarray, target_m: np.ndarray, target_wxyz: np.ndarray) -> None:
        """Fills `_error` [6] with what is missing to the target, in the frame of the scene."""
        data = self._data
        data.qpos[self._qpos] = position
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        np.subtract(target_m, data.site_xpos[self._site], out=self._error[:3])
        mujoco.mju_mat2Quat(self._quat, data.site_xmat[self._site])
        mujoco.mju_subQuat(self._turn, target_wxyz, self._quat)  # in the frame of the hand
        mujoco.mju_rotVecQuat(self._error[3:], self._turn, self._quat)
