"""The last check before a command reaches a robot: what is wrong is rejected by name, what is a little too much is clamped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import numpy as np

from vla_ros.core import rotations
from vla_ros.core.channels import TCP_POSE, mode_of
from vla_ros.core.collision import Clearance, approach
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import DataError, LimitError, StaleData, VlaError, did_you_mean
from vla_ros.core.types import Action, RobotState

REJECTIONS = {
    "not_finite": DataError,
    "channels": DataError,
    "source": LimitError,
    "stale": StaleData,
    "limits": LimitError,
    "step": LimitError,
    "workspace": LimitError,
    "collision": LimitError,
}
_TOLERANCE = 1e-9  # rad or m: a target on its limit is inside


class Limiter:
    """Checks the commands for one arm against its description.

    Args:
        robot: limits and joint names.
        forward: joint positions [N] rad -> TCP pose [6] (m, rotation vector rad) in `base_frame`. Needed for TCP targets; with it, joint
            targets are held to the workspace too.
        period_s: time that the first command after a hold may take its first motion from (one period of the command rate).
        age_limit_s: a command or measurement older than this is stale; also how far ahead joint velocities are looked at.
        clearance: the pair of links with the least room at joint positions [N] rad; None: collisions are not looked at.
        predict: joint positions [N] rad and TCP pose [6] -> joint positions [N] rad that the driver heads for. TCP targets need it to be
            checked for collisions.

    Attributes:
        source: who may command (`Action.source`); None lets everybody.
        rejected, clamped: how often, by name (`REJECTIONS`; "velocity", "workspace_margin", "position_margin").

    Not thread-safe: one caller, or the caller's lock.
    """

    def __init__(
        self,
        robot: RobotDescription,
        forward: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        period_s: float = 0.02,
        age_limit_s: float = 0.2,
        clearance: Clearance | None = None,
        predict: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.robot = robot
        self.age_limit_s = age_limit_s
        self.source: str | None = None
        self.rejected: Counter[str] = Counter()
        self.clamped: Counter[str] = Counter()
        self._forward = forward
        self._clearance, self._predict = clearance, predict
        self._period_s = period_s
        self._minimum, self._maximum = np.array(robot.position_min_rad), np.array(robot.position_max_rad)
        self._velocity_max = np.array(robot.velocity_max_rad_s)
        self._box = np.array(robot.workspace_min_m), np.array(robot.workspace_max_m)
        self._known: tuple[tuple[str, ...] | None, str, list[int]] = None, "", []  # the last good channels, their mode and columns
        self._last: tuple[str, int, np.ndarray] | None = None

    def reset(self) -> None:
        """Forgets the last command: the next one starts from the measured position. Call it on every hold and change of source."""
        self._last = None

    def count(self, error: VlaError) -> None:
        """Counts a rejection that happened before `check`, e.g. a message that could not be made into an Action."""
        self.rejected[error.reason or "channels"] += 1

    def check(self, action: Action, state: RobotState, now_ns: int) -> Action:
        """Returns what may be sent at `now_ns`: `action` with its data clamped.

        Raises:
            DataError: "not_finite", "channels". LimitError: "source", "limits", "step", "workspace", "collision". StaleData: "stale".
            The name is the error's `reason`, and counted in `rejected`.
        """
        if action.channels != self._known[0]:
            self._known = action.channels, *self._columns(action)
        _, mode, columns = self._known
        self._check_origin(action, state, now_ns)
        data = action.data.copy()
        self._check_gripper(action)
        check = {"joint_position": self._joint_position, "joint_velocity": self._joint_velocity, "tcp_pose": self._tcp_pose}[mode]
        data[columns] = target = check(data[columns], state, self._reference(mode, action.stamp_ns))
        self._last = mode, action.stamp_ns, target
        return replace(action, data=data)

    def _reject(self, name: str, message: str) -> NoReturn:
        self.rejected[name] += 1
        raise REJECTIONS[name](message, name)

    def _columns(self, action: Action) -> tuple[str, list[int]]:
        """Returns the mode and the columns of its targets, in the order of the joints or of x, y, z, rx, ry, rz."""
        try:
            mode = mode_of(action.channels)
        except DataError as error:
            self._reject("channels", str(error))
        suffix = mode.removeprefix("joint_")
        names = TCP_POSE if mode == "tcp_pose" else tuple(f"{joint}.{suffix}" for joint in self.robot.joints)
        allowed = {*names, *(("gripper.width", "gripper.closed") if self.robot.gripper else ())}
        for channel in action.channels:
            if channel not in allowed:
                self._reject("channels", f"robot {self.robot.name} has no channel '{channel}'; {did_you_mean(channel, allowed)}")
        missing = [name for name in names if name not in action.channels]
        if missing:
            self._reject("channels", f"robot {self.robot.name}: {', '.join(missing)} is missing; a command names all joints")
        return mode, [action.channels.index(name) for name in names]

    def _check_origin(self, action: Action, state: RobotState, now_ns: int) -> None:
        if self.source is not None and action.source != self.source:
            self._reject("source", f"command from '{action.source}', but the selected source is '{self.source}'; call ~/set_source first")
        if not np.isfinite(state.position).all():
            self._reject("not_finite", f"measured joint positions {np.asarray(state.position)}: not finite")
        for what, stamp_ns in (("command", action.stamp_ns), ("measurement", state.stamp_ns)):
            age_s = (now_ns - stamp_ns) * 1e-9
            if abs(age_s) > self.age_limit_s:
                hint = "from the future: are both clocks synchronised?" if age_s < 0 else "is the link or the sender too slow?"
                self._reject("stale", f"{what} is {age_s:.3f} s old, limit {self.age_limit_s:.3f} s; {hint}")
        if self._last and action.stamp_ns <= self._last[1]:
            older_ms = (self._last[1] - action.stamp_ns) * 1e-6
            self._reject("stale", f"command is {older_ms:.1f} ms older than the last one; commands came out of order")

    def _check_gripper(self, action: Action) -> None:
        gripper = self.robot.gripper
        for channel, value in zip(action.channels, action.data, strict=True):
            if channel == "gripper.width" and not gripper.width_min_m - _TOLERANCE <= value <= gripper.width_max_m + _TOLERANCE:
                self._reject("limits", f"gripper.width = {value:.4f} m, limits {gripper.width_min_m} .. {gripper.width_max_m} m")
            if channel == "gripper.closed" and not 0.0 <= value <= 1.0:
                self._reject("limits", f"gripper.closed = {value:.3f}, limits 0 .. 1")

    def _reference(self, mode: str, stamp_ns: int) -> tuple[np.ndarray | None, float]:
        """The last target and the s since; (None, one period) when motion starts from the measured position."""
        if self._last and self._last[0] == mode and (stamp_ns - self._last[1]) * 1e-9 <= self.age_limit_s:
            return self._last[2], (stamp_ns - self._last[1]) * 1e-9
        return None, self._period_s

    def _joint_position(self, target: np.ndarray, state: RobotState, reference: tuple[np.ndarray | None, float]) -> np.ndarray:
        robot, measured = self.robot, np.asarray(state.position)
        outside = np.maximum(self._minimum - target, target - self._maximum)
        if outside.max() > _TOLERANCE:
            i = int(outside.argmax())
            self._reject("limits", f"{robot.joints[i]} = {target[i]:.4f} rad, limits {self._minimum[i]} .. {self._maximum[i]} rad")
        step = np.abs(target - measured)
        if step.max() > robot.joint_step_max_rad:
            i = int(step.argmax())
            self._reject("step", f"{robot.joints[i]}: {step[i]:.3f} rad from the measured position, limit {robot.joint_step_max_rad} rad")
        self._check_workspace_of(target, measured)
        last, elapsed_s = reference
        start = measured if last is None else last
        reach = self._velocity_max * elapsed_s
        limited = np.clip(target, start - reach, start + reach)
        self.clamped["velocity"] += bool(np.abs(limited - target).max() > _TOLERANCE)
        self._check_collision(measured, limited, target)
        return limited

    def _joint_velocity(self, target: np.ndarray, state: RobotState, reference: tuple[np.ndarray | None, float]) -> np.ndarray:
        measured = np.asarray(state.position)
        limited = np.clip(target, -self._velocity_max, self._velocity_max)
        self.clamped["velocity"] += bool((limited != target).any())
        # until the watchdog ends it, a velocity must not carry a joint over its limit; moving back inside is always allowed
        low = np.minimum((self._minimum - measured) / self.age_limit_s, 0.0)
        high = np.maximum((self._maximum - measured) / self.age_limit_s, 0.0)
        inside = np.clip(limited, low, high)
        self.clamped["position_margin"] += bool((inside != limited).any())
        ahead = measured + inside * self.age_limit_s
        self._check_workspace_of(ahead, measured)
        self._check_collision(measured, ahead)
        return inside

    def _tcp_pose(self, target: np.ndarray, state: RobotState, reference: tuple[np.ndarray | None, float]) -> np.ndarray:
        robot = self.robot
        if self._forward is None or (self._clearance and self._predict is None):
            needs = "forward=...)" if self._forward is None else "predict=...) to look for collisions"
            self._reject("channels", f"robot {robot.name}: TCP targets need forward kinematics; give Limiter({needs}")
        excess = self._excess(target[:3])
        if excess.max() > robot.workspace_margin_m + _TOLERANCE:
            self._reject("workspace", self._workspace_message(target[:3], excess))
        measured = np.asarray(self._forward(np.asarray(state.position)))
        inside = np.concatenate([np.clip(target[:3], *self._box), target[3:]])
        self.clamped["workspace_margin"] += bool(excess.max() > _TOLERANCE)
        distance, angle = np.linalg.norm(inside[:3] - measured[:3]), float(rotations.angle_between(measured[3:], inside[3:]))
        if distance > robot.tcp_step_max_m:
            self._reject("step", f"TCP target {distance:.3f} m from the measured position, limit {robot.tcp_step_max_m} m")
        if angle > robot.tcp_step_max_rad:
            self._reject("step", f"TCP target turned {angle:.3f} rad from the measured pose, limit {robot.tcp_step_max_rad} rad")
        last, elapsed_s = reference
        limited = self._slow_tcp(inside, measured if last is None else last, elapsed_s)
        if self._clearance is not None:
            self._check_collision(np.asarray(state.position), self._predict(np.asarray(state.position), limited))
        return limited

    def _slow_tcp(self, target: np.ndarray, start: np.ndarray, elapsed_s: float) -> np.ndarray:
        """Goes from `start` towards `target` [6] as far as the TCP velocity limits allow in `elapsed_s`."""
        distance, angle = np.linalg.norm(target[:3] - start[:3]), float(rotations.angle_between(start[3:], target[3:]))
        reach_m, reach_rad = self.robot.tcp_velocity_max_m_s * elapsed_s, self.robot.tcp_rotation_max_rad_s * elapsed_s
        limited = target.copy()
        if distance > reach_m + _TOLERANCE:
            limited[:3] = start[:3] + (target[:3] - start[:3]) * (reach_m / distance)
        if angle > reach_rad + _TOLERANCE:
            limited[3:] = rotations.interpolate(start[3:], target[3:], reach_rad / angle)
        self.clamped["velocity"] += bool(distance > reach_m + _TOLERANCE or angle > reach_rad + _TOLERANCE)
        return limited

    def _check_workspace_of(self, target: np.ndarray, measured: np.ndarray) -> None:
        """Rejects joint positions [N] that take the TCP farther out of the workspace; they cannot be clamped to its box."""
        if self._forward is None:
            return
        position = np.asarray(self._forward(target))[:3]
        excess = self._excess(position)
        if excess.max() > self.robot.workspace_margin_m and excess.max() > self._excess(np.asarray(self._forward(measured))[:3]).max():
            self._reject("workspace", self._workspace_message(position, excess))

    def _check_collision(self, measured: np.ndarray, *goals: np.ndarray) -> None:
        """Rejects a way from `measured` over `goals` (joint positions [N]) that brings two links too close together."""
        gap = approach(self._clearance, measured, *goals) if self._clearance else None
        if gap is not None:
            self._reject("collision", f"{gap.first} would come to {gap.distance_m:.4f} m from {gap.second}, margin {gap.margin_m} m")

    def _excess(self, position: np.ndarray) -> np.ndarray:
        """How far (m) a position [3] lies outside the box, by axis; negative inside."""
        return np.maximum(self._box[0] - position, position - self._box[1])

    def _workspace_message(self, position: np.ndarray, excess: np.ndarray) -> str:
        i = int(excess.argmax())
        low, high, margin = self._box[0][i], self._box[1][i], self.robot.workspace_margin_m
        return f"tcp.{'xyz'[i]} = {position[i]:.3f} m, workspace {low} .. {high} m (margin {margin} m)"
