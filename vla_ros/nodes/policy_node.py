"""Rolls a policy out: `ExecuteTask` in, observations to the policy in a worker thread, actions to the robots at the command rate."""

from __future__ import annotations

import gc
import sys

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle

from vla_msgs.action import ExecuteTask
from vla_msgs.msg import TaskOutcome
from vla_ros.core.errors import DataError, DeviceError, VlaError
from vla_ros.core.executors import make_executor, parse_executor
from vla_ros.core.observation import ObservationBuffer
from vla_ros.core.rig import PolicyRig, load_rig
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.inference import InferenceWorker, check_delay, load_for_rig
from vla_ros.nodes.lifecycle import Health, VlaNode, run
from vla_ros.nodes.observation_input import ObservationInput
from vla_ros.nodes.pace import Pace
from vla_ros.nodes.robot_links import RobotLinks
from vla_ros.nodes.rollout import ABORTED, CANCELED, SOURCE, Goal, Limits, Rollout, Stage
from vla_ros.nodes.rollout_report import RolloutTopics, feedback_msg, health, result_msg

_REPORT_S = 0.2
# How long the inference thread may keep the control timer waiting for the interpreter (Python's default is 5 ms).
_SWITCH_INTERVAL_S = 0.5e-3


class PolicyNode(VlaNode):
    """Serves one `ExecuteTask` goal at a time; `rollout.Rollout` holds the logic."""

    def __init__(self, **kwargs) -> None:
        super().__init__("policy", **kwargs)
        self.parameter("checkpoint", "", "Name, path, 'script' or module:Class instead of the rig's; read by configure", read_only=False)
        self._executor_text = self.parameter("executor", "", "Executor instead of the rig's: name or name:option=value,...")
        self._limits = Limits(
            start_s=self.parameter("start_timeout_s", 10.0, "s, longest wait in each stage before the first action", low=0.1, high=600),
            hold_s=self.parameter("hold_limit_s", 1.0, "s, longest hold before the rollout is aborted", low=0.05, high=60),
            silence_s=self.parameter("robot_silence_s", 1.0, "s, longest silence of a robot node", low=0.1, high=60),
        )
        self._max_age_s = self.parameter("observation_max_age_s", 0.3, "s, older frames and states are stale", low=0.02, high=10)
        self._nice = self.parameter("inference_nice", 5, "How far the inference thread gives way, as of nice(1)", low=0, high=19)
        self._rollout: Rollout | None = None
        self._handle: ServerGoalHandle | None = None
        self._released, self._close = False, []

    # Lifecycle.

    def setup(self) -> None:
        rig, checkpoint = load_rig(self.rig_name), self.get_parameter("checkpoint").value
        section = rig.policy or PolicyRig(checkpoint)
        self._loaded = checkpoint or section.checkpoint
        self._executor = parse_executor(self._executor_text) if self._executor_text else dict(section.executor)
        make_executor(**self._executor)
        self._embodiment, self._inference_s = rig.embodiment, 1 / section.inference_hz
        self._period_ns = round(1e9 / rig.embodiment.control.rate_hz)
        policy = load_for_rig(self._loaded, rig)
        self._worker = InferenceWorker(policy, lambda error: self.get_logger().error(f"the policy raised {error!r}"), self._nice)
        self._input = ObservationInput(self, ObservationBuffer(policy.spec.cameras, self._max_age_s, rig.frozen_after_s()))
        self._reports: dict[str, msgs.RobotReport] = {}
        self._robots = RobotLinks(self, self._embodiment, SOURCE, self._on_robot)
        self._topics = RolloutTopics(self)
        self._close = [self._worker.close, self._input.close, self._robots.close, self._topics.close]
        self._make_interfaces()
        self.get_logger().info(f"policy {policy.spec.name} ({self._loaded}), executor {self._executor}")

    def _make_interfaces(self) -> None:
        outcome = self.create_subscription(TaskOutcome, "/task_outcome", self._on_outcome, qos.STATE)
        report = self.create_timer(_REPORT_S, self._report, clock=self.steady_clock)
        server = ActionServer(
            self, ExecuteTask, "~/execute_task", self._on_result, goal_callback=self._on_goal, handle_accepted_callback=self._on_accepted,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )  # fmt: skip
        self._close += [lambda: self.destroy_subscription(outcome), lambda: self.destroy_timer(report), server.destroy]

    def engage(self) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()  # what is loaded by now is no garbage: a collection must not walk all of torch between two ticks

    def disengage(self) -> None:
        if self._handle is not None:
            self._rollout.end(self.now_ns(), ABORTED, "the policy node is being deactivated")
            self._release()
            self._complete()  # nobody may be spinning any more, so the robots' answer is not awaited

    def teardown(self) -> None:
        for close in self._close:
            close()
        self._close = []

    def diagnose(self) -> Health:
        return health(self._rollout, {"checkpoint": self._loaded, "executor": self._executor, "invalid": dict(self._input.invalid)})

    # A goal, from its request to its result.

    def _on_goal(self, goal: ExecuteTask.Goal) -> GoalResponse:
        """A client learns only that its goal was refused, so the log says why."""
        try:
            self._check_goal(goal)
        except VlaError as error:
            self.get_logger().warning(f"goal '{goal.instruction}' refused: {error}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _check_goal(self, goal: ExecuteTask.Goal) -> None:
        if not self.is_active:
            raise DeviceError(f"the node is {self.state_label}, not active")
        if self._handle is not None:
            raise DeviceError(f"'{self._rollout.goal.instruction}' is still running; cancel it first")
        if not goal.instruction.strip() or not goal.time_limit_s > 0:
            raise DataError(f"it needs an instruction and a time limit > 0 s (given: {goal.time_limit_s})")
        check_delay(goal.inference_delay_s)
        self._chosen(goal.executor)

    def _chosen(self, executor: str) -> dict[str, object]:
        """The goal's executor; empty, or the name alone of the rig's: the rig's, with its options."""
        return self._executor if executor in ("", self._executor["name"]) else parse_executor(executor)

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        """In rclpy's sense the goal is executed at its end only: a coroutine that waits would make rclpy's executor spin at 100 %."""
        goal, now_ns = handle.request, self.now_ns()
        self._chosen_executor, self._worker.delay_s = self._chosen(goal.executor), goal.inference_delay_s
        self._rollout = Rollout(
            Goal(goal.instruction, goal.time_limit_s), self._worker, make_executor(**self._chosen_executor), self._input.buffer.get,
            self._embodiment, self._inference_s, lambda: self._robots.select(SOURCE), now_ns, self._limits,
        )  # fmt: skip
        for name, report in self._reports.items():
            self._rollout.robots.heard(report.stamp_ns, name, report)
        self._input.counts = self._rollout.statistics.frames
        self._handle, self._released = handle, False
        self._control = self.create_timer(self._period_ns * 1e-9, self._tick, clock=self.steady_clock)
        self._pace = Pace(self.steady_ns(), self._period_ns)
        self.get_logger().info(f"'{goal.instruction}', {goal.time_limit_s:g} s, executor {self._chosen_executor}")

    def _tick(self) -> None:
        """Commands first: everything else may be late."""
        late_s, rollout, now_ns = self._pace.late_s(self.steady_ns()), self._rollout, self.now_ns()
        if self._released:
            if self._robots.answer() is not None:
                self._complete()
            return
        action = rollout.tick(now_ns, late_s)
        if action is not None:
            self._robots.send(action)
        elif rollout.stage is Stage.RUNNING:
            self._robots.hold(now_ns, rollout.hold_reason)
        self._topics.inference(rollout.inference)
        if rollout.stage is Stage.CLAIMING and (answer := self._robots.answer()) is not None:
            rollout.claimed(now_ns, answer)
        if self._handle.is_cancel_requested:
            rollout.end(now_ns, CANCELED, "canceled by the client")
        if rollout.stage is Stage.ENDED:
            self._release()

    def _release(self) -> None:
        """However it ended: the robots hold, then nobody drives them."""
        self._robots.hold(self.now_ns(), self._rollout.reason or self._rollout.outcome)
        self._robots.select("none")
        self._released = True
        self.get_logger().info(f"'{self._rollout.goal.instruction}': {self._rollout.outcome}: {self._rollout.reason}")

    def _complete(self) -> None:
        self.destroy_timer(self._control)
        self._input.counts, handle, self._handle = {}, self._handle, None
        handle.execute()

    def _on_result(self, handle: ServerGoalHandle) -> ExecuteTask.Result:
        {ABORTED: handle.abort, CANCELED: handle.canceled}.get(self._rollout.outcome, handle.succeed)()
        return result_msg(self._rollout, self._chosen_executor["name"])

    # What arrives and what is told.

    def _on_robot(self, name: str, report: msgs.RobotReport) -> None:
        self._reports[name] = report
        if self._rollout is not None:
            self._rollout.robots.heard(self.now_ns(), name, report)

    def _on_outcome(self, message: TaskOutcome) -> None:
        outcome = msgs.OUTCOMES.get(message.outcome, "")
        if self._handle is not None:
            self._rollout.on_outcome(self.now_ns(), msgs.stamp_ns(message.stamp), outcome, message.detail)

    def _report(self) -> None:
        now_ns, rollout = self.now_ns(), self._rollout
        executor = self._chosen_executor if rollout is not None else self._executor
        self._topics.status(rollout, now_ns, self._worker.spec.name, executor["name"])
        if self._handle is not None and not self._released:
            self._handle.publish_feedback(feedback_msg(rollout, now_ns))


def main() -> int:
    """Console script `policy_node`."""
    return run(PolicyNode)


if __name__ == "__main__":
    sys.exit(main())
