"""Forward and differential inverse kinematics of one arm from its URDF, on pinocchio.

Poses are `T_base_tcp`: 4x4 numpy matrices, m, in the robot's base frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.rotations import quat_to_rotvec, rotvec_to_matrix
from vla_ros.core.urdf import load_urdf

_LOOKS_AHEAD, _LOOK_S = 2, 0.15


def pose_matrix(vector: np.ndarray) -> np.ndarray:
    """Returns the pose [4, 4] of x, y, z (m), rx, ry, rz (rotation vector, rad)."""
    pose = np.eye(4)
    pose[:3, :3] = rotvec_to_matrix(np.asarray(vector[3:], dtype=np.float64))
    pose[:3, 3] = vector[:3]
    return pose


def pose_vector(pose: np.ndarray) -> np.ndarray:
    """Returns x, y, z (m), rx, ry, rz (rotation vector of length <= pi, rad) [6] of a pose [4, 4]."""
    return np.concatenate([pose[:3, 3], _rotvec(pose[:3, :3])])


def pose_error(target: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Returns [6]: translation (m) and rotation vector (rad), both in the base frame, that bring pose `measured` [4, 4] to `target`."""
    turn = target[:3, :3] @ measured[:3, :3].T
    return np.concatenate([target[:3, 3] - measured[:3, 3], _rotvec(turn)])


def _rotvec(matrix: np.ndarray) -> np.ndarray:
    """`rotations.matrix_to_rotvec` for one matrix [3, 3], in a seventh of its time."""
    return quat_to_rotvec(pin.Quaternion(matrix).coeffs())


def displaced(pose: np.ndarray, error: np.ndarray) -> np.ndarray:
    """The inverse of `pose_error`: moves `pose` [4, 4] by `error` [6]."""
    moved = np.eye(4)
    moved[:3, :3] = rotvec_to_matrix(error[3:]) @ pose[:3, :3]
    moved[:3, 3] = pose[:3, 3] + error[:3]
    return moved


@dataclass(frozen=True)
class IkSettings:
    """How `Kinematics.velocity_for` weighs its wishes.

    `damping`: keeps joint speeds bounded near singularities; `posture_gain_hz`, `posture_max_rad_s`: pull towards home in the null space;
    `limit_margin_rad`: distance to a joint limit from which the speed towards it is reduced, to 0 at the limit.
    """

    damping: float = 0.02
    posture_gain_hz: float = 0.5
    posture_max_rad_s: float = 0.3
    limit_margin_rad: float = 0.1


class Kinematics:
    """One arm: the joints of `robot.joints`, from `robot.base_frame` to `robot.tcp_frame`.

    Raises:
        ConfigError: the URDF is missing or lacks a joint or frame, or it allows less than the embodiment does.
    """

    def __init__(self, robot: RobotDescription, settings: IkSettings = IkSettings()) -> None:
        full = pin.buildModelFromXML(load_urdf(robot.urdf))
        joints = [robot.joint_prefix + name for name in robot.joints]
        for name in joints:
            if not full.existJointName(name):
                raise ConfigError(f"{robot.urdf}: no joint '{name}'; {did_you_mean(name, list(full.names)[1:])}")
        others = [full.getJointId(name) for name in full.names[1:] if name not in joints]
        self._model = pin.buildReducedModel(full, others, pin.neutral(full))
        if list(self._model.names[1:]) != joints:
            found = ", ".join(self._model.names[1:])
            raise ConfigError(f"{robot.urdf}: joints in the order {found}, the embodiment has {', '.join(joints)}")
        for frame in (robot.base_frame, robot.tcp_frame):
            if not self._model.existFrame(frame):
                raise ConfigError(f"{robot.urdf}: no frame '{frame}'; {did_you_mean(frame, [item.name for item in self._model.frames])}")
        self._data = self._model.createData()
        self._tcp = self._model.getFrameId(robot.tcp_frame)
        base = self._model.frames[self._model.getFrameId(robot.base_frame)]
        self._base_inverse = base.placement.inverse()
        self._settings = settings
        self._home = np.array(robot.home_rad)
        self._low = np.maximum(robot.position_min_rad, self._model.lowerPositionLimit)
        self._high = np.minimum(robot.position_max_rad, self._model.upperPositionLimit)
        self._speed = np.array(robot.velocity_max_rad_s)

    def forward(self, position_rad: np.ndarray) -> np.ndarray:
        """Returns T_base_tcp [4, 4] at joint positions [N] rad."""
        pin.forwardKinematics(self._model, self._data, np.asarray(position_rad, dtype=np.float64))
        pin.updateFramePlacement(self._model, self._data, self._tcp)
        return (self._base_inverse * self._data.oMf[self._tcp]).homogeneous

    def tcp(self, position_rad: np.ndarray) -> np.ndarray:
        """Returns the TCP pose [6] in the base frame (m, rotation vector rad) at joint positions [N] rad."""
        return pose_vector(self.forward(position_rad))

    def jacobian(self, position_rad: np.ndarray) -> np.ndarray:
        """Returns [6, N]: joint velocities -> TCP velocity (m/s) and angular velocity (rad/s) in the base frame."""
        local = pin.computeFrameJacobian(
            self._model, self._data, np.asarray(position_rad, dtype=np.float64), self._tcp, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )
        turn = self._base_inverse.rotation
        return np.vstack([turn @ local[:3], turn @ local[3:]])

    def velocity_for(self, position_rad: np.ndarray, twist: np.ndarray) -> np.ndarray:
        """Returns joint velocities [N] rad/s that move the TCP with `twist` [6] (m/s, rad/s, base frame).

        Damped least squares, with a pull towards home in the null space. Not limited: see `limit`.
        """
        position = np.asarray(position_rad, dtype=np.float64)
        jacobian = self.jacobian(position)
        damped = jacobian @ jacobian.T + self._settings.damping**2 * np.eye(6)
        most = self._settings.posture_max_rad_s
        posture = np.clip(self._settings.posture_gain_hz * (self._home - position), -most, most)
        # J# twist + (I - J# J) posture, with one linear solve
        return posture + jacobian.T @ np.linalg.solve(damped, np.asarray(twist) - jacobian @ posture)

    def ahead(self, position_rad: np.ndarray, tcp: np.ndarray) -> np.ndarray:
        """Returns the joint positions [N] rad, within their limits, where heading for the TCP pose `tcp` [6] by `velocity_for` leads."""
        position, turn = np.asarray(position_rad, dtype=np.float64), pin.exp3(np.asarray(tcp[3:], dtype=np.float64))
        for _ in range(_LOOKS_AHEAD):
            pose = self.forward(position)
            error = np.concatenate([tcp[:3] - pose[:3, 3], pin.log3(turn @ pose[:3, :3].T)])
            position = np.clip(position + self.velocity_for(position, error / _LOOK_S) * _LOOK_S, self._low, self._high)
        return position

    def limit(self, position_rad: np.ndarray, velocity_rad_s: np.ndarray) -> np.ndarray:
        """Returns `velocity_rad_s` [N] within the joints' speed limits.

        Too fast a motion is slowed down as a whole, so that its direction stays. A joint closer to its position limit than the
        margin loses its speed towards the limit, to 0 on it.
        """
        velocity = velocity_rad_s / max(1.0, float(np.max(np.abs(velocity_rad_s) / self._speed)))
        room = np.where(velocity > 0, self._high - position_rad, position_rad - self._low)
        return velocity * np.clip(room / self._settings.limit_margin_rad, 0.0, 1.0)
