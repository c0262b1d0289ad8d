"""The client's side of a rollout over ROS: waits for the rig, resets its scene, sends ExecuteTask, cancels, records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import rclpy
from lifecycle_msgs.srv import GetState
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteTask
from vla_msgs.srv import MoveObject, ResetScene
from vla_ros.cli.record import Outcome, RolloutRecord
from vla_ros.cli.recorder import Recorder
from vla_ros.core.errors import DeviceError
from vla_ros.core.rig import Rig

_TURN_S = 0.05  # how long one turn of the loop waits for messages
_SERVICE_S = 20.0  # a reset moves the arm home
_RECOVERIES = 3
_SETTLE_S = 0.5  # frames and states of the scene before a reset count as fresh for 0.3 s: no policy may see them
_END_GRACE_S = 15.0  # beyond the time limit, before the policy node is taken for dead
_SILENCE_S = 5.0  # feedback comes at 5 Hz


class RolloutClient:
    """One client of one running rig. Use as a context manager.

    Args:
        rig: what runs.
        alive: called about 20 times a second while waiting; raises when the rig has died.
        record_frames: whether pictures, chunks and states are kept (for a report).
        domain_id: ROS domain of the rig; None: the environment's.
    """

    def __init__(
        self, rig: Rig, alive: Callable[[], None] = lambda: None, record_frames: bool = False, domain_id: int | None = None
    ) -> None:
        self._rig, self._alive = rig, alive
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("vla_rollout_client", context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._task = ActionClient(self._node, ExecuteTask, "/policy/execute_task")
        self.recorder = Recorder(self._node, rig, record_frames)
        self.feedback = ExecuteTask.Feedback()
        self._heard_s = 0.0
        self._mover: Client | None = None

    def __enter__(self) -> RolloutClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the ROS graph. Idempotent."""
        if self._context.ok():
            self._executor.shutdown()
            self._node.destroy_node()
            rclpy.shutdown(context=self._context)

    @property
    def record(self) -> RolloutRecord:
        """The data of the newest rollout."""
        return self.recorder.record

    @property
    def task_detail(self) -> str:
        """What the judge of the task said last, e.g. "red block 0.41 m from the plate"."""
        return self.recorder.task_detail

    @property
    def tcp_height_m(self) -> float | None:
        """The newest measured height of the TCP in base_link; None before the first measurement."""
        return None if self.recorder.tcp_m is None else float(self.recorder.tcp_m[2])

    def wait_until_active(self, names: Sequence[str], timeout_s: float = 90.0) -> None:
        """Waits until every node of `names` (full names) is in the lifecycle state "active".

        Raises:
            DeviceError: after `timeout_s`; says which node is in which state.
        """
        clients = {name: self._node.create_client(GetState, f"{name}/get_state") for name in names}
        states = dict.fromkeys(names, "not there")
        deadline = time.monotonic() + timeout_s
        while waiting := [name for name, state in states.items() if state != "active"]:
            if time.monotonic() > deadline:
                seen = ", ".join(f"{name} is {states[name]}" for name in waiting)
                raise DeviceError(f"the rig was not up after {timeout_s:.0f} s: {seen}; the node's own log says what it waits for")
            asked = {name: clients[name].call_async(GetState.Request()) for name in waiting if clients[name].service_is_ready()}
            self._turn_until(lambda asked=asked: bool(asked) and all(f.done() for f in asked.values()), 0.5)
            states.update({name: future.result().current_state.label for name, future in asked.items() if future.done()})
            self._turn_for(0.1)
        for client in clients.values():
            self._node.destroy_client(client)

    def reset_scene(self, seed: int, task: str) -> str:
        """Asks the simulation for a new scene; returns the task that is judged from now on.

        Args:
            seed: of the placement.
            task: canonical instruction; "": drawn from the seed.
        """
        reply = self._call(ResetScene, "/simulation/reset", ResetScene.Request(seed=seed, task=task))
        if not reply.success:
            hint = "; words of your own need --task with one of these" if "valid: " in reply.message else ""
            raise DeviceError(f"the simulation could not be reset (seed {seed}, task '{task}'): {reply.message}{hint}")
        self._turn_for(_SETTLE_S)
        self.recorder.forget_outcome()
        return reply.task

    def recover_robots(self) -> None:
        """Recovers every robot that a stop, a fault or a lost link has left behind; the others are not touched.

        Raises:
            DeviceError: a robot tells nothing, or did not recover in three attempts.
        """
        self._expect(self.recorder.heard_all_robots, 10.0, "a robot node tells no status; is the rig up (vla up RIG)?")
        for attempt in range(_RECOVERIES):
            replies = {name: self._call(Trigger, f"/{name}/recover", Trigger.Request()) for name in self.recorder.robots_to_recover()}
            failed = {name: reply.message for name, reply in replies.items() if not reply.success}
            if not failed:
                return
            if attempt + 1 < _RECOVERIES:
                self._turn_for(1.0)
        raise DeviceError("; ".join(f"robot {name} did not recover: {message}" for name, message in failed.items()))

    def move_object(self, dx_m: float, dy_m: float) -> Future:
        """Asks the simulation to shift the object that the task names; the future's result has `success` and `message`."""
        self._mover = self._mover or self._node.create_client(MoveObject, "/simulation/move_object")
        if not self._mover.wait_for_service(timeout_sec=2.0):
            raise DeviceError("nobody offers /simulation/move_object; is this a simulated rig?")
        return self._mover.call_async(MoveObject.Request(dx_m=dx_m, dy_m=dy_m))

    def execute(
        self, instruction: str, time_limit_s: float, executor: str = "", *, task: str = "", seed: int | None = None,
        on_turn: Callable[[], None] = lambda: None, inference_delay_s: float = 0.0,
    ) -> Outcome:  # fmt: skip
        """Rolls the policy out until it ends; Ctrl-C cancels.

        Args:
            instruction: what the policy is told.
            time_limit_s: of the rollout.
            executor: "" takes the rig's.
            task, seed: what is judged; only noted in the outcome.
            on_turn: called about 20 times a second.
            inference_delay_s: added to every inference, 0 .. 5 s.

        Raises:
            DeviceError: the policy node is not there, refuses the goal or does not answer.
        """
        goal = ExecuteTask.Goal(instruction=instruction, time_limit_s=time_limit_s, executor=executor, inference_delay_s=inference_delay_s)
        handle = self._send(goal)
        result = handle.get_result_async()

        def turn() -> None:
            self._check_feedback()
            on_turn()

        try:
            ended = self._turn_until(result.done, time_limit_s + _END_GRACE_S, turn)
        except KeyboardInterrupt:
            handle.cancel_goal_async()
            ended = self._turn_until(result.done, _END_GRACE_S)
        except BaseException:  # whatever it was: the robot must not go on when nobody watches any more
            handle.cancel_goal_async()
            raise
        self.recorder.end(self._now_ns())
        if not ended:
            raise DeviceError(f"the policy node gave no result within {time_limit_s + _END_GRACE_S:.0f} s; its log says why")
        return self._outcome(result.result().result, goal, task, seed)

    def _send(self, goal: ExecuteTask.Goal) -> ClientGoalHandle:
        """Returns the handle of the accepted goal."""
        self._expect(self._task.server_is_ready, 10.0, "nobody offers /policy/execute_task; is the rig up (vla up RIG)?")
        self.feedback = ExecuteTask.Feedback()
        self.recorder.begin(self._now_ns())
        sent = self._task.send_goal_async(goal, feedback_callback=self._on_feedback)
        self._expect(sent.done, 10.0, "the policy node did not answer the goal; its log says why")
        if not sent.result().accepted:
            raise DeviceError("the policy node refused the goal: another rollout runs, or it is not active; its log says which")
        self._heard_s = time.monotonic()
        return sent.result()

    def _outcome(self, result: ExecuteTask.Result, goal: ExecuteTask.Goal, task: str, seed: int | None) -> Outcome:
        statistics = json.loads(result.statistics or "{}")
        return Outcome(
            goal.instruction, task, seed, goal.executor or statistics.get("executor", ""), result.outcome, result.reason, result.duration_s,
            statistics, self.recorder.wrong_object, *self.recorder.steps,
        )  # fmt: skip

    def _check_feedback(self) -> None:
        """DDS takes a killed node for alive for another 20 s, so its silence has to tell."""
        silence_s = time.monotonic() - self._heard_s
        if silence_s > _SILENCE_S:
            raise DeviceError(f"the policy node has been silent for {silence_s:.1f} s: it died or hangs, its log says why; the robot holds")

    def _on_feedback(self, message: object) -> None:
        self._heard_s = time.monotonic()
        if message.feedback.elapsed_s > 0.0 and self.feedback.elapsed_s == 0.0:
            self.recorder.started(self._now_ns() - round(message.feedback.elapsed_s * 1e9))
        self.feedback = message.feedback

    def _call(self, kind: type, name: str, request: object) -> object:
        client = self._node.create_client(kind, name)
        try:
            self._expect(client.service_is_ready, 10.0, f"nobody offers {name}; is the rig up (vla up RIG)?")
            future = client.call_async(request)
            self._expect(future.done, _SERVICE_S, f"{name} did not answer within {_SERVICE_S:.0f} s")
            return future.result()
        finally:
            self._node.destroy_client(client)

    def _expect(self, condition: Callable[[], bool], timeout_s: float, message: str) -> None:
        if not self._turn_until(condition, timeout_s):
            raise DeviceError(message)

    def _turn_for(self, duration_s: float) -> None:
        self._turn_until(lambda: False, duration_s)

    def _turn_until(self, condition: Callable[[], bool], timeout_s: float, on_turn: Callable[[], None] = lambda: None) -> bool:
        """Handles messages until the condition holds (True) or the time is up (False)."""
        deadline = time.monotonic() + timeout_s
        due = 0.0
        while not condition():
            now = time.monotonic()
            if now > deadline:
                return False
            if now >= due:
                self._alive()
                on_turn()
                due = now + _TURN_S
            self._executor.spin_once(timeout_sec=_TURN_S)
        return True

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds
