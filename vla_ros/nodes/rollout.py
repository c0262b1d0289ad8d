"""The logic of one rollout, free of ROS: start, run, hold, end. Time is passed in (ns since the epoch)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import StaleData, VlaError
from vla_ros.core.types import Action, ActionChunk, Inference, Observation, PolicySpec
from vla_ros.nodes.chunk_check import check_chunk
from vla_ros.nodes.motion_clock import MotionClock
from vla_ros.nodes.robot_watch import RobotWatch
from vla_ros.nodes.rollout_statistics import TaskStatistics

SOURCE = "policy"
SUCCESS, FAILURE, TIME_LIMIT, CANCELED, ABORTED = "success", "failure", "time_limit", "canceled", "aborted"
NO_ACTION = "no_live_action"
FIRST_CHUNK = "waiting for the first chunk"
_DELAY_CHUNKS = 10  # as in RTC: the longest delay of the last ones is expected again


class Stage(Enum):
    WAITING = "waiting"  # for fresh observations and for robots that can follow
    WARMING = "warming"  # the first inference runs, for nothing
    CLAIMING = "claiming"  # the robots are asked to follow the policy
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Goal:
    """What is asked for: an instruction and how long it may take, s."""

    instruction: str
    time_limit_s: float


@dataclass(frozen=True)
class Limits:
    """How long each trouble may last, s, before the rollout is aborted."""

    start_s: float = 10.0  # each stage before the first action
    hold_s: float = 1.0  # no live action, no fresh observation, a robot that does not follow
    silence_s: float = 1.0  # no status of a robot


class Worker(Protocol):
    """See `inference.InferenceWorker`."""

    spec: PolicySpec
    busy: bool

    def warm_up(self, observation: Observation) -> None: ...
    def infer(self, observation: Observation) -> None: ...
    def take(self) -> tuple[Inference, float] | None: ...
    def idle(self) -> bool: ...


class Rollout:
    """Call `tick` at the command rate: it returns the action to send now, or None to hold (`hold_reason` says why).

    Args:
        goal: what is asked for.
        worker: runs the policy.
        executor: see `core.executors.make_executor`.
        observe: (now_ns, instruction) -> Observation; raises StaleData.
        embodiment: whose channels the chunks must have and whose robots must report (to `robots.heard`).
        inference_period_s: time between inferences, s.
        claim: called once when all is ready; answer with `claimed`.
        now_ns: now.
        limits: how long troubles may last.
    """

    def __init__(
        self, goal: Goal, worker: Worker, executor, observe: Callable[[int, str], Observation], embodiment: Embodiment,
        inference_period_s: float, claim: Callable[[], None], now_ns: int, limits: Limits = Limits(),
    ) -> None:  # fmt: skip
        self.goal, self.limits, self.stage = goal, limits, Stage.WAITING
        self.outcome, self.reason, self.hold_reason = "", "", "waiting for the first observation"
        self.inference: Inference | None = None
        self.robots = RobotWatch(embodiment.robots, SOURCE, limits.silence_s, limits.hold_s)
        self.statistics = TaskStatistics(worker.spec.cameras)
        self._worker, self._executor, self._observe, self._embodiment, self._claim = worker, executor, observe, embodiment, claim
        self._period_ns = round(inference_period_s * 1e9)
        self._start_ns = self._end_ns = self._stage_ns = self._hold_ns = self._due_ns = now_ns
        self._seen_ns = self._asked_ns = self._forgotten_ns = -1
        self._motion = MotionClock()
        executor.reset()

    def tick(self, now_ns: int, late_s: float = 0.0) -> Action | None:
        """One step of the control loop; `late_s` is how late the timer was."""
        if self.stage is Stage.ENDED:
            return None
        try:
            observation, problem = self._observe(now_ns, self.goal.instruction), ""
        except StaleData as error:
            observation, problem = None, str(error)
        if self.stage is not Stage.RUNNING:
            self._prepare(now_ns, observation, problem)
            return None
        self._accept(now_ns)
        self._check(now_ns)
        if self.stage is Stage.ENDED:
            return None
        if observation is not None:
            self._infer(now_ns, observation)
        return self._act(now_ns, problem, late_s)

    def claimed(self, now_ns: int, error: str = "") -> None:
        """All robots follow the policy now, or `error` says why not."""
        if self.stage is not Stage.CLAIMING:
            return
        if error:
            self.end(now_ns, ABORTED, error)
            return
        self.robots.start(now_ns)
        self._start_ns = self._hold_ns = self._due_ns = now_ns
        self._enter(Stage.RUNNING, now_ns, FIRST_CHUNK)

    def on_outcome(self, now_ns: int, stamp_ns: int, outcome: str, detail: str) -> None:
        """A judge said "running", "success" or "failure" about the instant `stamp_ns`."""
        if self.stage is Stage.RUNNING and stamp_ns >= self._start_ns and outcome in (SUCCESS, FAILURE):
            self.end(now_ns, outcome, detail)

    def end(self, now_ns: int, outcome: str, reason: str) -> None:
        """Ends the rollout; only the first call counts."""
        if self.stage is Stage.ENDED:
            return
        if self.stage is not Stage.RUNNING:
            self._start_ns = now_ns
        self.outcome, self.reason, self._end_ns = outcome, reason, now_ns
        self._enter(Stage.ENDED, now_ns, reason or outcome)

    def elapsed_s(self, now_ns: int) -> float:
        """Time since the robots were handed over, s; 0 before."""
        return ({Stage.RUNNING: now_ns, Stage.ENDED: self._end_ns}.get(self.stage, self._start_ns) - self._start_ns) * 1e-9

    @property
    def duration_s(self) -> float:
        """How long an ended rollout ran, s."""
        return self.elapsed_s(self._end_ns)

    def result(self) -> dict[str, object]:
        """The statistics of an ended rollout."""
        return self.statistics.result(self._start_ns, self._end_ns, self.robots.rejected())

    def _enter(self, stage: Stage, now_ns: int, hold_reason: str) -> None:
        self.stage, self._stage_ns, self.hold_reason = stage, now_ns, hold_reason

    def _prepare(self, now_ns: int, observation: Observation | None, problem: str) -> None:
        """Observations and robots first, then one inference for nothing, then the robots are handed over."""
        if self.stage is Stage.WAITING:
            busy = "" if self._worker.idle() else "an inference of an earlier rollout still runs"
            self.hold_reason = problem or self.robots.not_ready(now_ns) or busy
            if not self.hold_reason:
                self._worker.warm_up(observation)
                self._enter(Stage.WARMING, now_ns, "the first inference runs")
        elif self.stage is Stage.WARMING and self._take(now_ns) is not None:
            self._enter(Stage.CLAIMING, now_ns, "the robots have not answered set_source")
            self._claim()
        if now_ns - self._stage_ns > self.limits.start_s * 1e9:
            self.end(now_ns, ABORTED, f"not ready after {self.limits.start_s:g} s: {self.hold_reason}")

    def _accept(self, now_ns: int) -> None:
        """Hands a finished inference to the executor."""
        answer = self._take(now_ns)
        if answer is None or self._asked_ns < self._forgotten_ns:
            return
        inference, wall_s = answer
        try:
            check_chunk(inference.chunk, self._embodiment, now_ns, wall_s)
            chunk = self._signed(now_ns, inference.chunk, wall_s)
            self._executor.add(chunk)
        except VlaError as error:
            self._refuse(now_ns, error)
            return
        self.inference = replace(inference, chunk=chunk)
        self.statistics.add_chunk(wall_s, (now_ns - inference.chunk.stamp_ns) * 1e-9)

    def _take(self, now_ns: int) -> tuple[Inference, float] | None:
        try:
            return self._worker.take()
        except VlaError as error:
            self._refuse(now_ns, error)
            return None

    def _refuse(self, now_ns: int, error: VlaError) -> None:
        """The policy failed: no more of its actions."""
        self.statistics.rejected[error.reason or type(error).__name__] += 1
        self.end(now_ns, ABORTED, f"policy: {error}")

    def _signed(self, now_ns: int, chunk: ActionChunk, wall_s: float) -> ActionChunk:
        """Sequence, wall time and place in the motion are facts of the rollout, whatever the policy says."""
        facts = {"sequence": self.statistics.chunks, "inference_s": wall_s, "stamp_ns": self._motion.place(chunk.stamp_ns, now_ns)}
        return replace(chunk, **facts, policy=chunk.policy or self._worker.spec.name, embodiment=self._embodiment.name)

    def _check(self, now_ns: int) -> None:
        fault = self.robots.fault(now_ns, commanded=not self.hold_reason)
        if fault:
            self.end(now_ns, ABORTED, fault)
        elif now_ns - self._start_ns >= self.goal.time_limit_s * 1e9:
            self.end(now_ns, TIME_LIMIT, f"not done after {self.goal.time_limit_s:g} s")

    def _infer(self, now_ns: int, observation: Observation) -> None:
        """Starts the next inference when it is due, the last one is done and there are new frames."""
        if now_ns < self._due_ns or self._worker.busy or observation.stamp_ns <= self._seen_ns:
            return
        try:
            self._worker.infer(self._continued(now_ns, observation))
        except StaleData as error:
            self._refuse(now_ns, error)
            return
        self._seen_ns, self._asked_ns = observation.stamp_ns, now_ns
        self._due_ns = max(self._due_ns, now_ns - self._period_ns) + self._period_ns

    def _continued(self, now_ns: int, observation: Observation) -> Observation:
        """Hands over what the executor has committed, for as long as chunks have lately needed until they were usable."""
        late_ms = max(self.statistics.observation_age_ms[-_DELAY_CHUNKS:], default=0.0)
        delay_steps = math.ceil(late_ms * 1e-3 / self._worker.spec.dt_s)
        return replace(observation, prefix=self._executor.prefix(self._motion.place(observation.stamp_ns, now_ns), delay_steps))

    def _act(self, now_ns: int, problem: str, late_s: float) -> Action | None:
        """The action for now. Without one, or without a fresh view of the world, it holds, and not for ever."""
        action = None if problem else self._executor.at(now_ns)
        self.statistics.add_tick(late_s, self._executor.figures)
        if action is not None:
            self.hold_reason = ""
            self._motion.move(now_ns)
            self.statistics.hold(now_ns, "")
            return replace(action, stamp_ns=now_ns, source=SOURCE)
        self._motion.stand(now_ns)
        reason = problem or (NO_ACTION if self.statistics.chunks else FIRST_CHUNK)
        if self.hold_reason in ("", FIRST_CHUNK) and reason != self.hold_reason:
            # It keeps this reason while it lasts, though details (an age) change: the robot need not hear of each.
            self._hold_ns, self.hold_reason = now_ns, reason
            self.statistics.hold(now_ns, reason)
            if problem:
                # What was predicted for the interrupted motion, or will yet arrive of it, must not be resumed in its middle.
                self._executor.reset()
                self._forgotten_ns = now_ns
        limit_s = self.limits.start_s if self.hold_reason == FIRST_CHUNK else self.limits.hold_s
        if now_ns - self._hold_ns > limit_s * 1e9:
            why = problem or f"{reason} for {limit_s:g} s: inference takes too long for the horizon of the chunks, or has stopped"
            self.end(now_ns, ABORTED, why)
        return None
