"""The policy node as a process, against a fake robot and fake cameras on real topics."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from fake_rig import FakeRig, PolicyProcess, wait_for

from vla_msgs.msg import RobotCommand, RobotStatus, TaskOutcome
from vla_ros.cli.running_rig import OwnDomain
from vla_ros.nodes import msgs


@contextmanager
def rig_with(folder: Path, checkpoint: str, options: dict[str, object] | None = None, **parameters: object) -> Iterator[FakeRig]:
    domain = OwnDomain()
    rig = FakeRig(domain.id)
    policy = PolicyProcess(folder, domain.id, checkpoint, options, **parameters)
    rig.policy = policy
    try:
        yield rig
    finally:
        policy.close()
        rig.close()
        domain.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRig]:
    with rig_with(tmp_path_factory.mktemp("policy"), "dummy_policies:Still") as running:
        yield running


@pytest.fixture(autouse=True)
def as_new(request: pytest.FixtureRequest) -> None:
    if "rig" in request.fixturenames:
        running = request.getfixturevalue("rig")
        running.silent.clear()
        running.rejected.clear()
        running.state, running.reason, running.detail = RobotStatus.STATE_HOLD, "", ""
        running.publish_status()
        for log in (running.commands, running.chunks, running.sources, running.feedback, running.plans):
            log.clear()


def aborted(rig: FakeRig, words: str, within_s: float = 20.0) -> dict:
    """Sends a goal; checks that it is aborted with `words`, that the robot ends in hold and that nobody drives it."""
    status, result = rig.result(rig.send(time_limit_s=10.0), within_s)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, "aborted"), result.reason
    assert words in result.reason
    ends_in_hold(rig, result.reason)
    return json.loads(result.statistics)


def ends_in_hold(rig: FakeRig, reason: str) -> None:
    wait_for(lambda: rig.commands and rig.commands[-1].mode == RobotCommand.MODE_HOLD and rig.source == "none", "a hold and no source")
    assert rig.commands[-1].reason == reason


def running(rig: FakeRig) -> None:
    wait_for(lambda: any(command.mode == RobotCommand.MODE_TCP_POSE for command in rig.commands), "the first action")


def test_runs_to_the_time_limit(rig: FakeRig):
    status, result = rig.result(rig.send(time_limit_s=1.5))
    assert (status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, "time_limit")
    assert result.duration_s >= 1.5
    ends_in_hold(rig, result.reason)
    assert rig.sources == ["policy", "none"]
    statistics = json.loads(result.statistics)
    assert statistics["chunks"] == len(rig.chunks) >= 5
    assert [chunk.sequence for chunk in rig.chunks] == list(range(len(rig.chunks)))
    assert statistics["frames"]["front"]["published"] > 10
    actions = [command for command in rig.commands if command.mode == RobotCommand.MODE_TCP_POSE]
    assert len(actions) > 20 and {command.source for command in actions} == {"policy"}
    sequences = [command.sequence for command in rig.commands]
    assert sequences == sorted(set(sequences))
    assert msgs.action_of(actions[-1]).channels[-1] == "gripper.closed"
    assert rig.feedback and rig.feedback[-1].chunks > 0 and rig.feedback[-1].elapsed_s > 0
    assert (rig.feedback[-1].skill, rig.feedback[-1].step) == ("hold", 1)
    thought, placed = [msgs.plan_of(plan).stamp_ns for plan in rig.plans], [msgs.chunk_of(chunk).stamp_ns for chunk in rig.chunks]
    assert len(thought) == len(placed) and all(seen <= stamp for seen, stamp in zip(thought, placed, strict=True))
    assert thought[0] < placed[0], "what was seen before the arm set out is placed where it did"
    assert msgs.plan_of(rig.plans[-1]).task_chain == ("reach", "hold")


def test_one_goal_at_a_time_and_cancel(rig: FakeRig):
    handle = rig.send(time_limit_s=60.0)
    assert not rig.send("something else").accepted
    running(rig)
    handle.cancel_goal_async()
    status, result = rig.result(handle)
    assert (status, result.outcome) == (GoalStatus.STATUS_CANCELED, "canceled")
    ends_in_hold(rig, result.reason)


@pytest.mark.parametrize(
    "goal",
    [
        {"instruction": " "}, {"time_limit_s": 0.0}, {"executor": "mean"},
        {"inference_delay_s": -0.1}, {"inference_delay_s": 5.1}, {"inference_delay_s": float("nan")},
    ],
)  # fmt: skip
def test_bad_goals_are_refused(rig: FakeRig, goal: dict):
    assert not rig.send(**goal).accepted


def test_a_delay_of_inference_is_counted_and_belongs_to_its_goal_alone(rig: FakeRig):
    medians_ms = []
    for delay_s in (0.3, 0.0):
        result = rig.result(rig.send(time_limit_s=2.0, inference_delay_s=delay_s))[1]
        assert result.outcome == "time_limit"
        medians_ms.append(json.loads(result.statistics)["inference_ms"]["p50"])
    assert medians_ms[0] >= 300.0 > medians_ms[1]


@pytest.mark.parametrize(("outcome", "name"), [(TaskOutcome.SUCCESS, "success"), (TaskOutcome.FAILURE, "failure")])
def test_the_judge_ends_it(rig: FakeRig, outcome: int, name: str):
    handle = rig.send(executor="ensemble:m=0.5", time_limit_s=60.0)
    running(rig)
    rig.judge(outcome, "red block is on the plate")
    status, result = rig.result(handle)
    assert (status, result.outcome, result.reason) == (GoalStatus.STATUS_SUCCEEDED, name, "red block is on the plate")
    ends_in_hold(rig, result.reason)


@pytest.mark.parametrize("lost", ["front", "proprioception"])
def test_what_stops_coming_holds_and_aborts_and_comes_back(rig: FakeRig, lost: str):
    handle = rig.send(time_limit_s=60.0)
    running(rig)
    rig.silent.add(lost)
    wait_for(lambda: rig.commands[-1].mode == RobotCommand.MODE_HOLD, "a hold")
    assert lost in rig.commands[-1].reason
    status, result = rig.result(handle)
    assert status == GoalStatus.STATUS_ABORTED and lost in result.reason
    assert lost in json.loads(result.statistics)["holds"][0]["reason"]
    ends_in_hold(rig, result.reason)
    rig.silent.clear()
    rig.commands.clear()
    assert rig.result(rig.send(time_limit_s=0.5))[1].outcome == "time_limit", "no other node was restarted"


def test_says_what_it_waits_for(rig: FakeRig):
    rig.silent.add("wrist")
    wait_for(lambda: rig.age_s("wrist") > 0.5, "an old frame")
    handle = rig.send(time_limit_s=60.0)
    wait_for(lambda: any("camera wrist" in feedback.hold_reason for feedback in rig.feedback), "the reason in the feedback")
    handle.cancel_goal_async()
    assert rig.result(handle)[1].outcome == "canceled"
    assert "policy" not in rig.sources, "the robot was never handed over"


@pytest.mark.parametrize("state", [RobotStatus.STATE_STOPPED, RobotStatus.STATE_DISCONNECTED])
def test_a_robot_that_gives_up(rig: FakeRig, state: int):
    handle = rig.send(time_limit_s=60.0)
    running(rig)
    rig.state, rig.reason, rig.detail = state, "link_lost", "no new state for 0.12 s"
    status, result = rig.result(handle)
    assert status == GoalStatus.STATUS_ABORTED and "link_lost: no new state for 0.12 s" in result.reason
    ends_in_hold(rig, result.reason)


@pytest.mark.parametrize(
    ("policy", "words", "rejection"),
    [
        ("NotFinite", "112 of 112 values are NaN", "not_finite"),
        ("WrongChannels", "unknown tcp.rw; missing tcp.rz", "channels"),
        ("Slow", "a longer horizon or a faster policy is needed", "stale"),
        ("Stale", "its observation", "stale"),
        ("Raising", "ZeroDivisionError: division by zero in the policy", "PolicyError"),
        ("Stopping", "no_live_action for 1 s", None),
    ],
)
def test_policies_that_go_wrong(tmp_path: Path, policy: str, words: str, rejection: str | None):
    with rig_with(tmp_path, f"dummy_policies:{policy}") as rig:
        statistics = aborted(rig, words)
        assert statistics["rejected"] == ({rejection: 1} if rejection else {})
        assert bool(statistics["holds"]) == (rejection is None)


def test_sigterm_in_mid_rollout_holds_first(tmp_path: Path):
    with rig_with(tmp_path, "dummy_policies:Still") as rig:
        handle = rig.send(time_limit_s=60.0)
        running(rig)
        asked = handle.get_result_async()
        rig.policy.process.send_signal(signal.SIGTERM)
        assert rig.policy.process.wait(20) == 0
        wait_for(asked.done, "a result, although the node is gone")
        assert asked.result().result.outcome == "aborted"
        ends_in_hold(rig, "the policy node is being deactivated")


def test_a_wrong_checkpoint_ends_the_process(tmp_path: Path):
    policy = PolicyProcess(tmp_path, 0, "robovlms_frank")
    assert policy.process.wait(30) == 1
    assert "robovlms_frank" in policy.log.read_text()
