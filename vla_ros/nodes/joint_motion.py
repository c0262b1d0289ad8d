"""`~/move_to_joints`: a slow joint motion through the same gate as every other command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle

from vla_msgs.action import MoveToJoints
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import DataError, VlaError, did_you_mean
from vla_ros.core.types import Action
from vla_ros.nodes.command_gate import NOBODY, CommandGate, State
from vla_ros.nodes.lifecycle import VlaNode
from vla_ros.nodes.steady_loop import locked

SOURCE = "move_to_joints"
_DEFAULT_SPEED = 0.2
_TOLERANCE_RAD = 0.01
_SETTLE_S = 3.0  # how long the arm may need to arrive after the last target
_FEEDBACK_EVERY = 10


@dataclass(frozen=True)
class Course:
    """From `start` to `goal` [N] rad in `duration_s`, beginning and ending at rest."""

    start: np.ndarray
    goal: np.ndarray
    duration_s: float

    def at(self, elapsed_s: float) -> np.ndarray:
        """The target [N] rad, along the minimum-jerk curve."""
        share = min(1.0, elapsed_s / self.duration_s)
        return self.start + (self.goal - self.start) * share**3 * (10 - 15 * share + 6 * share**2)


def plan_course(robot: RobotDescription, start: np.ndarray, names: list[str], position: list[float], speed: float) -> Course:
    """Plans a motion whose fastest joint peaks at `speed` of its limit. Raises DataError for wrong names, limits or speed."""
    if not 0.0 <= speed <= 1.0:
        raise DataError(f"speed = {speed}, expected above 0 and at most 1 (0: the default {_DEFAULT_SPEED})", "limits")
    if len(names) != len(position):
        raise DataError(f"{len(position)} positions for {len(names)} joints", "channels")
    goal = np.array(start if names else robot.home_rad, dtype=np.float64)
    for name, value in zip(names, position, strict=True):
        if name not in robot.joints:
            raise DataError(f"robot {robot.name} has no joint '{name}'; {did_you_mean(name, robot.joints)}", "channels")
        i = robot.joints.index(name)
        if not robot.position_min_rad[i] <= value <= robot.position_max_rad[i]:
            raise DataError(f"{name} = {value:.4f} rad, limits {robot.position_min_rad[i]} .. {robot.position_max_rad[i]} rad", "limits")
        goal[i] = value
    # 1.875 is the peak speed of the minimum-jerk curve over its mean
    fastest_s = np.abs(goal - start) / (np.array(robot.velocity_max_rad_s) * (speed or _DEFAULT_SPEED))
    return Course(np.array(start), goal, max(0.1, 1.875 * float(fastest_s.max())))


class JointMotion:
    """The action server; the robot node calls `step` at its own rate. One goal at a time, none while another source drives."""

    def __init__(self, node: VlaNode, describe: Callable[[], tuple[RobotDescription, CommandGate] | None], lock: threading.RLock) -> None:
        """`describe` returns the arm and its gate, or None while the node is not active; `step` and `abort` are called under `lock`."""
        self._node = node
        self._describe, self._lock = describe, lock
        self._goal: ServerGoalHandle | None = None
        self._course: Course | None = None
        self._begun_ns = 0
        self._steps = 0
        self._outcome = MoveToJoints.Result()
        self._server = ActionServer(
            node,
            MoveToJoints,
            "~/move_to_joints",
            self._deliver,
            goal_callback=self._accept,
            handle_accepted_callback=self._begin,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    @locked
    def _accept(self, request: MoveToJoints.Goal) -> GoalResponse:
        active = self._describe()
        if active is None:
            why = "the node is not active"
        elif self._goal is not None:
            why = "another goal runs"
        elif active[1].state != State.HOLD or active[1].measured is None:
            why = f"the robot is {active[1].state.name.lower()}"
        else:
            return GoalResponse.ACCEPT
        self._node.get_logger().warning(f"move_to_joints refused: {why}")
        return GoalResponse.REJECT

    @locked
    def _begin(self, goal: ServerGoalHandle) -> None:
        request, (robot, gate) = goal.request, self._describe()
        self._goal, self._begun_ns, self._steps = goal, self._node.steady_ns(), 0
        try:
            self._course = plan_course(robot, gate.measured.position, list(request.joint_names), list(request.position), request.speed)
            gate.select(SOURCE)
        except VlaError as error:
            self._finish(gate, False, str(error), float("nan"))

    def step(self, robot: RobotDescription, gate: CommandGate, now_ns: int, steady_ns: int) -> Action | None:
        """Sends the next target; returns what was executed."""
        if self._goal is None:
            return None
        elapsed_s = (steady_ns - self._begun_ns) * 1e-9
        error_rad = float(np.abs(self._course.goal - gate.measured.position).max()) if gate.measured is not None else float("nan")
        if elapsed_s >= self._course.duration_s and error_rad < _TOLERANCE_RAD:
            self._finish(gate, True, "", error_rad)
        elif self._goal.is_cancel_requested:
            self._finish(gate, False, "canceled", error_rad)
        elif elapsed_s > self._course.duration_s + _SETTLE_S:
            message = f"{error_rad:.3f} rad from the goal after {elapsed_s:.1f} s, tolerance {_TOLERANCE_RAD} rad"
            self._finish(gate, False, message, error_rad)
        else:
            channels = tuple(f"{joint}.position" for joint in robot.joints)
            action = Action(channels, self._course.at(elapsed_s), now_ns, SOURCE, self._steps)
            return self._send(gate, action, steady_ns, elapsed_s, error_rad)
        return None

    def abort(self, gate: CommandGate, message: str) -> None:
        """Ends a running goal, e.g. on deactivation."""
        if self._goal is not None:
            self._finish(gate, False, message, float("nan"))

    def _send(self, gate: CommandGate, action: Action, steady_ns: int, elapsed_s: float, error_rad: float) -> Action | None:
        executed = gate.command(lambda: action, SOURCE, action.stamp_ns, steady_ns)
        if executed is None:
            self._finish(gate, False, gate.detail or gate.reason or f"the robot was given to '{gate.source}'", error_rad)
        elif self._steps % _FEEDBACK_EVERY == 0:
            progress = min(1.0, elapsed_s / self._course.duration_s)
            self._goal.publish_feedback(MoveToJoints.Feedback(progress=progress, error_rad=error_rad))
        self._steps += 1
        return executed

    def _finish(self, gate: CommandGate, success: bool, message: str, error_rad: float) -> None:
        """Lets go of the robot and hands the result over; the reason of a failed motion stays in the status."""
        goal, self._goal = self._goal, None
        self._outcome = MoveToJoints.Result(success=success, message=message, error_rad=error_rad)
        if gate.source == SOURCE:
            reason, detail = gate.reason, gate.detail
            gate.select(NOBODY)
            if reason and not success:
                gate.hold(reason, detail)
        goal.execute()

    def _deliver(self, goal: ServerGoalHandle) -> MoveToJoints.Result:
        """Called only when the motion is over: a coroutine that waits for it would make rclpy's executor spin at 100 %."""
        if self._outcome.success:
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return self._outcome
