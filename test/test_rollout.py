"""The rollout's logic, with the time passed in: how it starts, when it holds, why it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError, PolicyError, StaleData, VlaError
from vla_ros.core.executors import make_executor
from vla_ros.core.types import Action, ActionChunk, Inference, Observation, PolicySpec, Proprioception
from vla_ros.nodes.chunk_check import by_robot, check_chunk
from vla_ros.nodes.inference import InferenceWorker
from vla_ros.nodes.msgs import RobotReport
from vla_ros.nodes.pace import Pace
from vla_ros.nodes.robot_watch import RobotWatch
from vla_ros.nodes.rollout import FIRST_CHUNK, NO_ACTION, Goal, Limits, Rollout, Stage
from vla_ros.nodes.rollout_statistics import FrameCount

MS, S = 1_000_000, 1_000_000_000
TICK_NS = 20 * MS
CHANNELS = (*TCP_POSE, "gripper.closed")
FRANKA = load_embodiment("franka")
SPEC = PolicySpec("fake", "franka", ("front",), TCP_POSE, CHANNELS, 16, 0.1)
FOLLOWING, HOLD = "following", "hold"


class FakeWorker:
    """Answers `latency_ns` after it was asked, on the time of the test."""

    def __init__(self, clock: Rig) -> None:
        self.spec, self._rig = SPEC, clock
        self._answer_ns: int | None = None
        self.calls, self.latency_ns, self.busy = 0, 30 * MS, False
        self.change: Callable[[ActionChunk], ActionChunk] = lambda chunk: chunk

    def warm_up(self, observation: Observation) -> None:
        self._ask(observation)

    def infer(self, observation: Observation) -> None:
        self.calls += 1
        self.prefix = observation.prefix
        self._ask(observation)

    def _ask(self, observation: Observation) -> None:
        assert not self.busy
        self.busy, self._observation, self._answer_ns = True, observation, self._rig.now_ns + self.latency_ns

    def take(self) -> tuple[Inference, float] | None:
        if not self.busy or self._rig.now_ns < self._answer_ns:
            return None
        self.busy = False
        data = np.tile(np.append(self._observation.proprioception.data, 1.0), (16, 1))
        chunk = ActionChunk(self._observation.stamp_ns, 0.1, CHANNELS, data, 99, "fake", "franka")
        return Inference(self.change(chunk)), self.latency_ns * 1e-9

    def idle(self) -> bool:
        return not self.busy


class Rig:
    """One robot and one camera at 50 Hz, on a time of its own."""

    def __init__(self, time_limit_s: float = 60.0, executor: str = "first", limits: Limits = Limits()) -> None:
        self.now_ns = self.begin_ns = 1_000 * S
        self.problem = ""
        self.frames = self.robot_speaks = self.robot_obeys = True
        self.stamp_ns = self.now_ns
        self.report = RobotReport(0, HOLD, "none")
        self.claims = 0
        self.worker = FakeWorker(self)
        self.sent: list[Action | None] = []
        self.rollout = Rollout(
            Goal("do it", time_limit_s), self.worker, make_executor(executor), self._observe, FRANKA, 0.1, self._claim, self.now_ns, limits
        )

    def _observe(self, now_ns: int, instruction: str) -> Observation:
        if self.problem:
            raise StaleData(self.problem, "stale")
        state = Proprioception(self.stamp_ns, TCP_POSE, np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0]))
        return Observation(self.stamp_ns, {}, state, instruction)

    def _claim(self) -> None:
        self.claims += 1
        self.report = replace(self.report, source="policy")

    def tick(self, seconds: float = 0.02) -> Action | None:
        """Runs for `seconds`; returns what was sent last."""
        for _ in range(round(seconds / 0.02)):
            self.now_ns += TICK_NS
            if self.frames:
                self.stamp_ns = self.now_ns - 10 * MS
            if self.robot_speaks:
                self.rollout.robots.heard(self.now_ns, "arm", replace(self.report, stamp_ns=self.now_ns))
            action = self.rollout.tick(self.now_ns, 1e-4)
            self.sent.append(action)
            if self.robot_obeys and self.rollout.stage is Stage.RUNNING:
                self.report = RobotReport(0, HOLD if action is None else FOLLOWING, "policy", self.rollout.hold_reason)
        return action

    def run(self, seconds: float = 1.0) -> None:
        """Starts the rollout and runs it until `seconds` after the robot was handed over."""
        for _ in range(100):
            self.tick()
            if self.rollout.stage is Stage.CLAIMING:
                break
        self.rollout.claimed(self.now_ns)
        self.tick(seconds)

    @property
    def elapsed_s(self) -> float:
        return self.rollout.elapsed_s(self.now_ns)

    def ended(self) -> tuple[str, str]:
        assert self.rollout.stage is Stage.ENDED, f"still {self.rollout.stage.value}: {self.rollout.hold_reason}"
        return self.rollout.outcome, self.rollout.reason


def test_starts_in_order_and_counts_only_what_ran():
    rig = Rig()
    rig.problem = "camera front: no frame has come yet"
    rig.tick(0.1)
    assert rig.rollout.stage is Stage.WAITING and "camera front" in rig.rollout.hold_reason
    rig.problem = ""
    rig.tick()
    assert rig.rollout.stage is Stage.WARMING and rig.worker.calls == 0
    rig.tick(0.04)
    assert rig.rollout.stage is Stage.CLAIMING and rig.claims == 1 and rig.elapsed_s == 0.0
    rig.tick(0.1)
    assert rig.claims == 1, "the robots are asked once"
    rig.rollout.claimed(rig.now_ns)
    assert rig.tick() is None and rig.rollout.hold_reason == FIRST_CHUNK
    action = rig.tick(0.5)
    assert action.channels == CHANNELS and (action.stamp_ns, action.source) == (rig.now_ns, "policy")
    rig.rollout.end(rig.now_ns, "canceled", "")
    result = rig.rollout.result()
    assert result["chunks"] == len(result["inference_ms"]) + 3 == 5
    assert result["holds"] == [], "waiting for the first chunk is no hold"
    assert rig.rollout.duration_s == pytest.approx(0.52)


def test_sequence_and_inference_time_are_the_rollouts():
    rig = Rig()
    rig.run(0.5)
    chunk = rig.rollout.inference.chunk
    assert (chunk.sequence, chunk.embodiment) == (rig.rollout.statistics.chunks - 1, "franka")
    assert chunk.inference_s == pytest.approx(0.03)


def test_infers_at_its_rate_and_only_on_new_frames():
    rig = Rig()
    rig.run(1.0)
    assert rig.worker.calls == 11, "at once, then every 0.1 s"
    rig.tick()
    rig.frames = False
    rig.tick(0.5)
    assert rig.worker.calls == 12, "the newest frame was not seen yet"


def test_one_inference_at_a_time():
    rig = Rig()
    rig.worker.latency_ns = 250 * MS
    rig.run(2.0)  # the fake worker asserts that it is not asked twice
    assert rig.worker.calls == 8


@pytest.mark.parametrize("cause", ["observation", "robot", "stopped robot", "warm-up", "claim"])
def test_gives_up_starting_with_a_named_reason(cause: str):
    rig = Rig(limits=Limits(start_s=2.0))
    rig.problem = "camera wrist: 3.000 s old" if cause == "observation" else ""
    rig.robot_speaks = cause != "robot"
    if cause == "stopped robot":
        rig.report = RobotReport(0, "stopped", "none", "reflex", "call ~/recover")
    if cause == "warm-up":
        rig.worker.latency_ns = 10 * S
    rig.tick(2.2)
    outcome, reason = rig.ended()
    words = {
        "observation": "camera wrist: 3.000 s old",
        "robot": "arm: no status",
        "stopped robot": "arm stopped: reflex: call ~/recover",
        "warm-up": "first inference",
        "claim": "set_source",
    }
    assert outcome == "aborted" and words[cause] in reason and "2 s" in reason
    assert rig.rollout.result()["chunks"] == 0


def test_a_refused_claim_ends_it():
    rig = Rig()
    rig.tick(0.1)
    rig.rollout.claimed(rig.now_ns, "arm: stopped; call ~/recover")
    assert rig.ended() == ("aborted", "arm: stopped; call ~/recover")


def test_time_limit():
    rig = Rig(time_limit_s=0.5)
    rig.run(0.48)
    assert rig.rollout.stage is Stage.RUNNING
    rig.tick(0.1)
    assert rig.ended() == ("time_limit", "not done after 0.5 s")
    assert rig.sent[-1] is None


def test_a_stale_camera_holds_at_once_and_aborts_after_a_second():
    rig = Rig()
    rig.run()
    rig.problem = "camera front: 0.310 s old, limit 0.300 s"
    assert rig.tick() is None
    assert rig.rollout.hold_reason == rig.problem
    rig.problem = "camera front: 1.200 s old, limit 0.300 s"
    rig.tick(0.9)
    assert rig.rollout.stage is Stage.RUNNING and "0.310" in rig.rollout.hold_reason, "a hold keeps its reason"
    rig.tick(0.2)
    assert rig.ended() == ("aborted", rig.problem), "the newest text is the reason of the end"
    hold = rig.rollout.result()["holds"][0]
    assert hold["t_s"] == pytest.approx(1.02) and hold["duration_s"] == pytest.approx(1.02)


def test_a_short_hold_is_survived_and_old_chunks_are_not_resumed():
    rig = Rig()
    rig.run()
    assert rig.worker.busy, "an answer is on its way"
    rig.problem = "camera front: 0.310 s old, limit 0.300 s"
    rig.tick(0.4)
    rig.problem, chunks = "", rig.rollout.statistics.chunks
    assert rig.tick() is None and rig.rollout.statistics.chunks == chunks, "waits for a prediction made after the hold"
    assert rig.tick(0.2) is not None
    assert rig.rollout.hold_reason == ""
    rig.rollout.end(rig.now_ns, "canceled", "")
    assert [round(hold["duration_s"], 2) for hold in rig.rollout.result()["holds"]] == [0.44]


def test_no_live_action_holds_then_aborts():
    rig = Rig()
    rig.run()
    rig.worker.latency_ns = 3 * S
    rig.tick(1.8)
    assert rig.rollout.hold_reason == NO_ACTION and rig.sent[-1] is None
    rig.tick(1.0)
    outcome, reason = rig.ended()
    assert outcome == "aborted" and reason.startswith("no_live_action for 1 s") and "inference" in reason


def test_resumes_when_a_chunk_comes():
    rig = Rig()
    rig.run()
    rig.worker.latency_ns = 0
    rig.worker.change = lambda chunk: replace(chunk, data=chunk.data[:3])  # 0.2 s
    rig.frames = False
    rig.tick(0.6)
    assert rig.rollout.hold_reason == NO_ACTION or rig.sent[-1] is not None
    rig.tick(1.0)
    assert rig.rollout.hold_reason == NO_ACTION
    rig.frames = True
    rig.tick(0.2)
    assert rig.rollout.hold_reason == "" and rig.sent[-1] is not None


WRONG_NAMES = (*TCP_POSE[:5], "tcp.rw", "gripper.closed")
JOINT_NAMES = tuple(f"fr3_joint{i}.position" for i in range(1, 8))
BAD_CHUNKS = {
    "wrong names": (lambda c: replace(c, channels=WRONG_NAMES), "channels", "unknown tcp.rw; missing tcp.rz"),
    "other mode": (lambda c: replace(c, channels=JOINT_NAMES), "channels", "unknown fr3_joint1.position"),
    "other robot": (lambda c: replace(c, embodiment="aloha"), "embodiment", "'aloha'"),
    "stale": (lambda c: replace(c, stamp_ns=c.stamp_ns - 5 * S), "stale", "it reaches 1.50 s ahead"),
    "from the future": (lambda c: replace(c, stamp_ns=c.stamp_ns + S), "stamp", "in the future"),
}


def rising(chunk: ActionChunk) -> ActionChunk:
    """Row k is 10 k mm above where the arm was observed."""
    data = chunk.data.copy()
    data[:, 2] += 0.01 * np.arange(len(data))
    return replace(chunk, data=data)


def test_an_arm_at_rest_sets_out_with_the_first_row_however_late_it_comes():
    rig = Rig()
    rig.worker.latency_ns, rig.worker.change = 400 * MS, rising
    rig.run(0.02)
    while (action := rig.tick()) is None:
        assert rig.rollout.hold_reason == FIRST_CHUNK
    assert rig.rollout.inference.chunk.stamp_ns == rig.now_ns and action.data[2] == 0.3
    assert rig.rollout.statistics.observation_age_ms[0] >= 400, "the age of what the policy saw is told as it is"
    first = rig.rollout.inference.chunk
    rig.tick(0.2)
    assert rig.sent[-1].data[2] == pytest.approx(0.32), "from then on by its stamp"
    while rig.rollout.inference.chunk is first:
        rig.tick()
    newer = rig.rollout.inference.chunk
    assert newer.stamp_ns == first.stamp_ns, "seen when the arm was about to set out"
    rig.tick(0.4)
    newest = rig.rollout.inference.chunk
    assert newest.sequence == 2 and newest.stamp_ns == rig.now_ns - 410 * MS, "an arm that moves has gone on while the policy was thinking"
    assert rig.sent[-1].data[2] == pytest.approx(0.341)


def test_after_a_hold_a_chunk_goes_on_where_the_arm_stopped():
    rig = Rig(limits=Limits(hold_s=5.0))
    rig.run(0.02)
    rig.worker.latency_ns, rig.worker.change = 1_400 * MS, rising  # a chunk reaches 1.5 s: it moves and stands in turn
    stops_ns, starts_ns, chunks = [], [], {}
    for _ in range(300):
        rig.tick()
        acted = [action is not None for action in rig.sent[-2:]]
        if acted == [True, False]:
            stops_ns.append(rig.now_ns)
        if acted == [False, True]:
            starts_ns.append(rig.now_ns)
        if rig.rollout.inference is not None:
            chunks[rig.rollout.inference.chunk.sequence] = rig.rollout.inference.chunk
    seen_before_it_stood = next(chunk for chunk in chunks.values() if chunk.stamp_ns + 1_400 * MS > starts_ns[1] - 20 * MS)
    stood_ns = starts_ns[1] - stops_ns[0]
    assert stood_ns > 1 * S
    assert 0 < stops_ns[0] - (seen_before_it_stood.stamp_ns - stood_ns) < 200 * MS, "a little of it had happened when the arm stopped"
    assert 0.3 < rig.sent[round((starts_ns[1] - rig.begin_ns) / TICK_NS) - 1].data[2] < 0.32, "and that far it is into its rows"


@pytest.mark.parametrize("kind", BAD_CHUNKS)
def test_a_bad_chunk_ends_it_at_once(kind: str):
    rig = Rig()
    rig.run()
    change, name, words = BAD_CHUNKS[kind]
    rig.worker.change = change
    rig.tick(0.2)
    outcome, reason = rig.ended()
    assert outcome == "aborted" and reason.startswith("policy: ") and words in reason
    assert rig.sent[-1] is None
    assert rig.rollout.result()["rejected"] == {name: 1}


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (DataError("action chunk: 3 of 112 values are NaN", "not_finite"), "not_finite"),
        (PolicyError("fake: ZeroDivisionError"), "PolicyError"),
    ],
)
def test_a_policy_that_raises_ends_it(error: VlaError, name: str):
    def fail(_: ActionChunk) -> ActionChunk:
        raise error

    rig = Rig()
    rig.run()
    rig.worker.change = fail
    rig.tick(0.2)
    assert rig.ended() == ("aborted", f"policy: {error}")
    assert rig.rollout.result()["rejected"] == {name: 1}


def test_channels_may_not_change_on_the_way():
    rig = Rig()
    rig.run()
    rig.worker.change = lambda c: replace(c, channels=(*TCP_POSE, "gripper.width"))
    rig.tick(0.2)
    assert "began with" in rig.ended()[1]


ROBOT_TROUBLES = {
    "stopped": (RobotReport(0, "stopped", "policy", "stop", "~/stop was called"), "arm stopped: stop: ~/stop was called"),
    "disconnected": (RobotReport(0, "disconnected", "policy", "link_lost", "no new state"), "arm disconnected: link_lost: no new state"),
    "taken": (RobotReport(0, HOLD, "leader"), "arm: the source is now 'leader', not 'policy'"),
    "rejects": (RobotReport(0, HOLD, "policy", "step", "0.2 m", {"step": 1}), "arm holds: step: 0.2 m"),
}


@pytest.mark.parametrize("kind", ROBOT_TROUBLES)
def test_a_robot_that_gives_up_ends_it(kind: str):
    rig = Rig()
    rig.run()
    rig.robot_obeys = False
    rig.report, words = ROBOT_TROUBLES[kind]
    rig.tick()
    assert rig.ended() == ("aborted", words)


def test_what_a_robot_rejected_before_does_not_count():
    rig = Rig()
    rig.report = RobotReport(0, HOLD, "none", "", "", {"step": 4})
    rig.run(0.1)
    rig.robot_obeys = False
    rig.report = RobotReport(0, HOLD, "policy", "step", "", {"step": 4, "source": 2})
    rig.tick(0.1)
    assert rig.rollout.stage is Stage.RUNNING
    rig.rollout.end(rig.now_ns, "canceled", "")
    assert rig.rollout.result()["rejected"] == {"source": 2}


def test_a_robot_that_holds_although_commanded_ends_it():
    rig = Rig()
    rig.run()
    rig.robot_obeys = False
    rig.report = RobotReport(0, HOLD, "policy", "command_timeout", "no command for 0.15 s")
    rig.tick(0.9)
    assert rig.rollout.stage is Stage.RUNNING
    rig.tick(0.2)
    assert rig.ended() == ("aborted", "arm holds although it is commanded: command_timeout: no command for 0.15 s")


def test_a_silent_robot_ends_it():
    rig = Rig()
    rig.run()
    rig.robot_speaks = False
    rig.tick(1.1)
    outcome, reason = rig.ended()
    assert outcome == "aborted" and reason.startswith("arm: no status from its node for 1.0")


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_the_judge_ends_it_but_not_with_old_news(outcome: str):
    rig = Rig()
    rig.run(0.2)
    rig.rollout.on_outcome(rig.now_ns, rig.begin_ns, outcome, "of the last rollout")
    rig.rollout.on_outcome(rig.now_ns, rig.now_ns, "running", "on the way")
    assert rig.rollout.stage is Stage.RUNNING
    rig.rollout.on_outcome(rig.now_ns, rig.now_ns, outcome, "red block is on the plate")
    assert rig.ended() == (outcome, "red block is on the plate")
    rig.rollout.end(rig.now_ns, "canceled", "too late")
    assert rig.ended()[0] == outcome, "the first end counts"


def test_the_statistics_have_their_keys_and_are_json():
    rig = Rig(executor="ensemble")
    frames = rig.rollout.statistics.frames["front"]
    rig.run()
    for i in range(50):
        frames.published(rig.now_ns - i * TICK_NS)
        if i != 20:
            frames.received(rig.now_ns - i * TICK_NS)
    rig.rollout.end(rig.now_ns, "canceled", "")
    result = json.loads(json.dumps(rig.rollout.result(), allow_nan=False))
    figures = {"inference_ms", "observation_age_ms", "tick_late_ms", "boundary_jump_rad", "boundary_jump_m", "prediction_age_ms"}
    assert set(result) == figures | {"chunks", "frames", "holds", "rejected"}
    assert result["inference_ms"] == pytest.approx({"p50": 30.0, "p99": 30.0})
    assert result["observation_age_ms"] == pytest.approx({"p50": 50.0, "p99": 50.0})
    assert result["tick_late_ms"] == pytest.approx({"p50": 0.1, "p99": 0.1, "max": 0.1})
    assert set(result["prediction_age_ms"]) == set(result["boundary_jump_m"]) == {"p50", "p99"}
    assert result["boundary_jump_rad"]["p99"] == pytest.approx(0.0, abs=1e-6)
    assert result["frames"]["front"] == {"published": 40, "received": 39, "lost": 1}, "the last 0.2 s may still be on their way"


def test_frames_outside_the_rollout_do_not_count():
    count = FrameCount()
    for stamp_ns in range(10):
        count.published(stamp_ns)
    count.received(3)
    count.received(9)
    assert count.between(2, 5) == {"published": 4, "received": 1, "lost": 3}


def test_pace_measures_against_absolute_deadlines():
    pace = Pace(100 * S, TICK_NS)
    assert pace.late_s(100 * S + TICK_NS + 3 * MS) == pytest.approx(0.003)
    assert pace.late_s(100 * S + 2 * TICK_NS) == 0.0, "lateness does not add up"
    assert pace.late_s(100 * S + 5 * TICK_NS + MS) == pytest.approx(0.041), "late by the deadline that was missed"
    assert pace.late_s(100 * S + 6 * TICK_NS) == 0.0, "deadlines that were missed altogether are skipped"


def test_a_robot_node_that_starts_anew_counts_from_zero():
    watch = RobotWatch(["arm"], "policy", 1.0, 1.0)
    watch.heard(0, "arm", RobotReport(0, HOLD, "none", rejected={"step": 9}))
    watch.start(0)
    watch.heard(1, "arm", RobotReport(1, FOLLOWING, "policy", rejected={"step": 1}))
    assert not watch.fault(2, True) and not watch.rejected()


def test_two_arms_get_their_own_part():
    arm = FRANKA.robots["arm"]
    both = replace(FRANKA, robots={"left": arm, "right": arm})
    channels = tuple(f"{side}.{name}" for side in ("left", "right") for name in CHANNELS)
    action = Action(channels, np.arange(14.0), 5, "policy", 1)
    parts = dict(by_robot(action, both))
    assert parts["right"].channels == CHANNELS and parts["right"].data.tolist() == list(range(7, 14))
    assert (parts["left"].stamp_ns, parts["left"].source, parts["left"].data[0]) == (5, "policy", 0.0)
    check_chunk(ActionChunk(S, 0.1, channels, np.zeros((2, 14)), 0), both, S, 0.0)
    with pytest.raises(DataError, match=r"missing right\.tcp\.x"):
        check_chunk(ActionChunk(S, 0.1, channels[:7], np.zeros((2, 7)), 0), both, S, 0.0)


def test_the_worker_warms_up_resets_and_carries_errors():
    class Policy:
        spec = SPEC
        log: list[str] = []  # noqa: RUF012

        def reset(self) -> None:
            self.log.append("reset")

        def infer(self, observation: Observation) -> Inference:
            self.log.append(observation.instruction)
            if observation.instruction == "fail":
                raise ZeroDivisionError("oh")
            return None if observation.instruction == "nothing" else Inference(ActionChunk(0, 0.1, CHANNELS, np.zeros((1, 7)), 0))

    def answer(instruction: str, call: str = "infer"):
        observation = Observation(0, {}, Proprioception(0, ("tcp.x",), np.zeros(1)), instruction)
        getattr(worker, call)(observation)
        with pytest.raises(PolicyError, match="one at a time"):
            worker.infer(observation)
        while (taken := worker.take()) is None:
            pass
        return taken

    told: list[BaseException] = []
    worker = InferenceWorker(Policy(), told.append)
    assert isinstance(answer("first", "warm_up")[0], Inference) and Policy.log == ["reset", "first", "reset"]
    with pytest.raises(PolicyError, match="ZeroDivisionError: oh"):
        answer("fail")
    assert [type(error) for error in told] == [ZeroDivisionError]
    with pytest.raises(PolicyError, match="NoneType"):
        answer("nothing")
    assert worker.idle() and answer("again")[1] >= 0.0
    worker.delay_s = 0.02
    assert answer("delayed")[1] >= 0.02, "the wall time includes it"
    worker.close()


def test_rtc_hands_the_committed_actions_to_the_policy():
    rig = Rig(executor="rtc")
    rig.run(1.0)
    prefix = rig.worker.prefix
    assert prefix.stamp_ns <= rig.stamp_ns and prefix.channels == CHANNELS
    assert prefix.data.shape == (16, 7) and prefix.weights[0] == 1.0, "the chunk needs 40 ms: one row is committed"
    assert prefix.weights[1] < 1.0
    plain = Rig()
    plain.run(1.0)
    assert plain.worker.prefix is None


def test_rtc_refuses_a_policy_that_is_slower_than_its_chunk():
    rig = Rig(executor="rtc")
    rig.run(0.5)
    rig.rollout.statistics.observation_age_ms.append(1700.0)
    rig.tick(0.2)
    assert rig.rollout.stage is Stage.ENDED and "does not fit in a chunk of 16 rows" in rig.rollout.reason
