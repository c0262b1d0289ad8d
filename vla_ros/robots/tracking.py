"""From absolute targets to joint motion: the one tracking law of all arms.

Every target becomes a joint velocity: smoothed feed-forward from consecutive targets plus `gain_hz` times the distance to go.
An arm that takes velocities is sent just that (`Tracker`); for one that takes positions it is integrated (`PositionReference`). One that
takes the TCP's twist and finds its joints' velocities itself is sent the same law's twist (`Tracker.follow_tcp`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_ros.core.channels import TCP_POSE, mode_of
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import DataError
from vla_ros.core.types import Action
from vla_ros.robots.kinematics import Kinematics, displaced, pose_error, pose_matrix, pose_vector

# Targets further apart in time than this are not one motion: no feed-forward between them.
_FEED_FORWARD_GAP_S = 0.25
# Where a new chunk takes over, the target steps by some mm. Unsmoothed, that step would be travelled within one command period, as a jerk.
_FEED_FORWARD_TIME_S = 0.06
_FIRST_PERIOD_S = 0.02


@dataclass(frozen=True)
class Tracked:
    """`velocity` [N] rad/s to go with, and `executed`: the action with what the speed and joint limits left of its targets."""

    velocity: np.ndarray
    executed: Action


class Tracker:
    """The law itself. Not thread-safe: one caller, or the caller's lock.

    Args:
        robot: names the channels. kinematics: of the same arm.
        gain_hz: share of the remaining distance that is travelled per second, 4 to 8.
    """

    def __init__(self, robot: RobotDescription, kinematics: Kinematics, gain_hz: float) -> None:
        self._name, self._kinematics, self._gain_hz = robot.name, kinematics, gain_hz
        self._targets = {
            "joint_position": tuple(f"{joint}.position" for joint in robot.joints),
            "joint_velocity": tuple(f"{joint}.velocity" for joint in robot.joints),
            "tcp_pose": TCP_POSE,
        }
        self._tcp_speed = robot.tcp_velocity_max_m_s, robot.tcp_rotation_max_rad_s
        self._last: tuple[str, int, np.ndarray, np.ndarray] | None = None  # mode, stamp, target, feed-forward

    def reset(self) -> None:
        """Forgets the last target: call it on every stop."""
        self._last = None

    def follow(self, action: Action, position: np.ndarray, stamp_ns: int) -> Tracked:
        """Returns the joint velocity towards `action` from joint positions [N] rad.

        Raises:
            DataError: not the channels of this arm.
        """
        mode, target = self._target(action)
        wanted, bias = self._velocity(mode, target, stamp_ns, position)
        velocity = self._kinematics.limit(position, wanted)
        self._last = (mode, stamp_ns, target, bias)
        if np.abs(velocity - wanted).max() <= 1e-9:
            return Tracked(velocity, action)
        executed = action.data.copy()
        executed[[action.channels.index(name) for name in self._targets[mode]]] = self._reached(mode, velocity, bias, position)
        return Tracked(velocity, replace(action, data=executed))

    def follow_tcp(self, action: Action, position: np.ndarray, stamp_ns: int) -> tuple[np.ndarray, Action]:
        """Returns the TCP's twist [6] (m/s, rad/s, base frame) towards a TCP target, and `action` as executed, from positions [N] rad.

        Too fast a twist is slowed down as a whole to the TCP's limits; the joints' limits are left to who carries it out.

        Raises:
            DataError: no TCP target.
        """
        mode, target = self._target(action)
        if mode != "tcp_pose":
            raise DataError(f"{self._name}: {mode} has no twist; it needs {', '.join(TCP_POSE)}", "channels")
        wanted, bias = self._twist(target, stamp_ns, position)
        too_fast = max(np.linalg.norm(part) / most for part, most in zip((wanted[:3], wanted[3:]), self._tcp_speed, strict=True))
        twist = wanted / max(1.0, too_fast)
        self._last = (mode, stamp_ns, target, bias)
        if too_fast <= 1.0:
            return twist, action
        executed = action.data.copy()
        reached = displaced(self._kinematics.forward(position), (twist - bias) / self._gain_hz)
        executed[[action.channels.index(name) for name in TCP_POSE]] = pose_vector(reached)
        return twist, replace(action, data=executed)

    def _target(self, action: Action) -> tuple[str, np.ndarray]:
        """Returns the mode and its targets in the order of the joints, or of x, y, z, rx, ry, rz."""
        mode = mode_of(action.channels)
        names = self._targets[mode]
        missing = [name for name in names if name not in action.channels]
        if missing:
            raise DataError(f"{self._name}: {', '.join(missing)} is missing; {mode} needs {', '.join(names)}", "channels")
        return mode, action.data[[action.channels.index(name) for name in names]]

    def _velocity(self, mode: str, target: np.ndarray, stamp_ns: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the joint velocity [N] rad/s towards `target` before limits, and its feed-forward part (joint space or twist)."""
        if mode == "joint_velocity":
            return target, np.zeros_like(target)
        if mode == "tcp_pose":
            twist, bias = self._twist(target, stamp_ns, position)
            return self._kinematics.velocity_for(position, twist), bias
        elapsed_s = self._since_last(mode, stamp_ns)
        bias = self._smoothed(target - self._last[2], elapsed_s) if elapsed_s else np.zeros_like(target)
        return bias + self._gain_hz * (target - position), bias

    def _twist(self, target: np.ndarray, stamp_ns: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the twist [6] towards the TCP pose `target` [6] before limits, and its feed-forward part."""
        pose, elapsed_s = pose_matrix(target), self._since_last("tcp_pose", stamp_ns)
        bias = self._smoothed(pose_error(pose, pose_matrix(self._last[2])), elapsed_s) if elapsed_s else np.zeros(6)
        return bias + self._gain_hz * pose_error(pose, self._kinematics.forward(position)), bias

    def _since_last(self, mode: str, stamp_ns: int) -> float:
        """Returns the time (s) since the last target, or 0 when both are not one motion."""
        elapsed_s = (stamp_ns - self._last[1]) * 1e-9 if self._last and self._last[0] == mode else 0.0
        return elapsed_s if 0.0 < elapsed_s <= _FEED_FORWARD_GAP_S else 0.0

    def _smoothed(self, step: np.ndarray, elapsed_s: float) -> np.ndarray:
        """First-order low-pass over the velocity step / elapsed_s; the velocity's integral, the way travelled, stays the same."""
        last = self._last[3]
        return last + (step / elapsed_s - last) * elapsed_s / (_FEED_FORWARD_TIME_S + elapsed_s)

    def _reached(self, mode: str, velocity: np.ndarray, bias: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The target for which `velocity` would have been the answer."""
        if mode == "joint_velocity":
            return velocity
        if mode == "joint_position":
            return position + (velocity - bias) / self._gain_hz
        twist = self._kinematics.jacobian(position) @ velocity
        return pose_vector(displaced(self._kinematics.forward(position), (twist - bias) / self._gain_hz))


class PositionReference:
    """What an arm that takes joint positions is sent: the tracker's velocity, integrated from where the arm is.

    Args:
        robot, kinematics, gain_hz: see Tracker.
        lead_rad: how far the reference may run ahead of the measured position, so that a blocked arm is not wound up.
    """

    def __init__(self, robot: RobotDescription, kinematics: Kinematics, gain_hz: float, lead_rad: float) -> None:
        self._tracker = Tracker(robot, kinematics, gain_hz)
        self._low, self._high = np.array(robot.position_min_rad), np.array(robot.position_max_rad)
        self._lead_rad = lead_rad
        self.velocity = np.zeros(len(robot.joints))  # [N] rad/s that the reference last went with
        self._position: np.ndarray | None = None
        self._stamp_ns = 0

    def reset(self) -> None:
        """The next motion starts from the measured position: call it on every stop."""
        self._tracker.reset()
        self._position = None

    def follow(self, action: Action, measured: np.ndarray, stamp_ns: int) -> tuple[np.ndarray, Action]:
        """Returns the joint positions [N] rad to send now, and the action as it is executed. Raises DataError: not this arm's channels."""
        start = measured if self._position is None else self._position
        elapsed_s = (stamp_ns - self._stamp_ns) * 1e-9
        if self._position is None or not 0.0 < elapsed_s <= _FEED_FORWARD_GAP_S:
            elapsed_s = _FIRST_PERIOD_S
        tracked = self._tracker.follow(action, start, stamp_ns)
        ahead = np.clip(start + tracked.velocity * elapsed_s, measured - self._lead_rad, measured + self._lead_rad)
        self._position, self._stamp_ns = np.clip(ahead, self._low, self._high), stamp_ns
        self.velocity = (self._position - start) / elapsed_s
        return self._position, tracked.executed
