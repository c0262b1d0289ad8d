"""What goes wrong with each robot, over real processes: named, at rest within 200 ms of being told, and going on when asked.

The robot node runs as on a robot; its driver speaks to the device's end of the protocol. When the arm stood, the device says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from arm_client import wait_for
from bench import AGE_LIMIT_S, DRIVE_RAD_S, HOLD_S, MOVING_RAD_S, TIMEOUT_S, Bench, Held
from counterparts import COUNTERPARTS, DRIVERS, HOLD, KILL
from faults_table import PAGE, Row, listed_cases

from vla_msgs.msg import RobotStatus
from vla_ros.core.channels import TCP_POSE
from vla_ros.nodes.command_gate import State

ITSELF, RECOVER, SELECT, NEXT = "itself", "`~/recover`", "selecting the source", "the next command"
BAD_COMMANDS = {
    "NaN in a command": "not_finite",
    "wrong channel": "channels",
    "a joint is missing": "channels",
    "stale stamp": "stale",
    "stamp of the future": "stale",
    "step too large": "step",
    "target beyond a limit": "limits",
    "target outside the workspace": "workspace",
}


@pytest.fixture(scope="module")
def benches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bench]]:
    """Gives the bench of a driver: one at a time, for all of its cases."""
    if request.config.getoption("--hardware"):
        pytest.skip("faults are injected into simulated devices only")
    with ExitStack() as stack:
        running: list[Bench] = []

        def of(driver: str) -> Bench:
            if not running or running[0].driver != driver:
                running.clear()
                stack.close()
                running.append(stack.enter_context(Bench(driver, tmp_path_factory.mktemp(driver))))
            return running[0]

        yield of


@pytest.fixture
def moving(benches: Callable[[str], Bench], driver: str, words: str) -> Iterator[Bench]:
    """The arm follows; whatever the test before has left, it starts from a healthy rig."""
    bench = benches(driver)
    bench.box.start()
    if bench.client.status.state in (RobotStatus.STATE_STOPPED, RobotStatus.STATE_DISCONNECTED):
        bench.recover()
    bench.drive_steadily()
    yield bench
    bench.client.velocity = None


def goes_on(bench: Bench, words: str, held: Held, by: str, dead: bool = False) -> Row:
    """Recovers, checks that nothing moves until a source is selected and that it then does."""
    state = State(bench.client.named(held.report.reason, held.report.stamp_ns, "status")[0].state)
    if by == RECOVER:
        bench.recover()
    elif by == ITSELF:
        bench.wait_for_hold()
    bench.stayed_at_rest(held)
    bench.drive()
    return Row(bench.driver, words, held.report.reason, state.name.lower(), held.told_ms, None if dead else held.rest_ms, by)


def on_the_device(moving: Bench, words: str) -> Row:
    fault = COUNTERPARTS[moving.driver].faults[words]
    dead = fault.inject == KILL
    moving.break_device(fault)
    try:
        # a lost session is opened again before anybody looks; then the node holds, and says no reason any more
        held = moving.held(fault.reason, fault.state, *([HOLD] if fault.by_itself else []), dead=dead)
    finally:
        moving.mend_device(fault)
    return goes_on(moving, words, held, ITSELF if fault.by_itself else RECOVER, dead)


def bad_command(moving: Bench, words: str) -> Row:
    """A policy whose commands are bad from now on."""
    client, velocity = moving.client, moving.client.velocity
    bad = _bad(moving, words)
    moving.fault_ns, client.velocity = time.time_ns(), None
    for _ in range(5):
        client.send(**bad)
        time.sleep(0.02)
    client.velocity = velocity  # a late return to good ones changes nothing
    held = moving.held(BAD_COMMANDS[words], HOLD)
    return goes_on(moving, words, held, SELECT)


def _bad(bench: Bench, words: str) -> dict[str, object]:
    robot, velocities = bench.robot, bench.client.velocities
    positions = tuple(f"{joint}.position" for joint in robot.joints)
    zeros, here = [0.0] * len(robot.joints), list(bench.client.joints[-1].position[: len(robot.joints)])
    towards_middle = 1.0 if 2 * here[0] < robot.position_min_rad[0] + robot.position_max_rad[0] else -1.0
    return {
        "NaN in a command": {"data": [float("nan"), *zeros[1:]]},
        "wrong channel": {"data": zeros, "channels": ("nothing.velocity", *velocities[1:])},
        "a joint is missing": {"data": zeros[1:], "channels": velocities[1:]},
        "stale stamp": {"data": zeros, "age_s": AGE_LIMIT_S + 2.0},
        "stamp of the future": {"data": zeros, "age_s": -AGE_LIMIT_S - 2.0},
        "step too large": {"data": [here[0] + towards_middle * (robot.joint_step_max_rad + 0.1), *here[1:]], "channels": positions},
        "target beyond a limit": {"data": [*here[:-1], robot.position_max_rad[-1] + 0.2], "channels": positions},
        "target outside the workspace": {"data": [robot.workspace_max_m[0] + 0.2, 0.0, 0.2, 3.1, 0.0, 0.0], "channels": TCP_POSE},
    }[words]


def foreign_source(moving: Bench, words: str) -> Row:
    client, before = moving.client, _rejected(moving, "source")
    moving.fault_ns, client.source = time.time_ns(), "leader"
    held = moving.held("command_timeout", HOLD)
    wait_for(lambda: _rejected(moving, "source") > before + 5, "its commands are counted")
    wait_for(lambda: int(client.diagnosis.get("rejected.source", 0)) > before, "and told in /diagnostics")
    return goes_on(moving, words, held, NEXT)


def policy_killed(moving: Bench, words: str) -> Row:
    client = moving.client
    client.velocity = None
    moving.told("command_timeout")
    policy = moving.another_policy()
    try:
        moving.wait(lambda: client.status.state == RobotStatus.STATE_FOLLOWING and client.speed() > MOVING_RAD_S, "the other policy drives")
        moving.fault_ns = time.time_ns()
    finally:
        policy.kill()
        policy.wait()
    held = moving.held("command_timeout", HOLD)
    return goes_on(moving, words, held, NEXT)


def command_flood(moving: Bench, words: str) -> Row:
    """Twenty times the rate for a second: the motion stays what was asked for, and nothing is left to do when it ends."""
    client, velocity = moving.client, moving.client.velocity
    client.velocity = None
    begun_ns = time.time_ns()
    for sent in range(1000):
        client.send([0.0] * (len(moving.robot.joints) - 1) + [velocity])
        time.sleep(max(0.0, (begun_ns - time.time_ns()) * 1e-9 + (sent + 1) * 1e-3))
    drowned = bool(client.named("stale", begun_ns))  # a node that cannot keep up says so and holds at once
    ended_ns = time.time_ns()
    moving.fault_ns = begun_ns if drowned else ended_ns
    held = moving.held("stale" if drowned else "command_timeout", HOLD)
    log = moving.box.motion()
    during = log[(log[:, 0] > begun_ns) & (log[:, 0] < ended_ns), 1]
    assert np.convolve(during, np.full(10, 0.1), "valid").max() < 1.3 * DRIVE_RAD_S, "a flood moves the arm faster"
    assert drowned or held.told_ms < (TIMEOUT_S + HOLD_S) * 1e3, "old commands were still being executed"
    return goes_on(moving, words, held, SELECT if drowned else NEXT)


def joint_limit(moving: Bench, words: str) -> Row:
    """Driven into the last joint's limit: the arm rests there, and says why."""
    client, robot = moving.client, moving.robot
    before = int(client.diagnosis.get("clamped.position_margin", 0))
    last, limit = len(robot.joints) - 1, (robot.position_min_rad[-1] if client.velocity < 0 else robot.position_max_rad[-1])
    client.velocity = client.velocity * 3.0
    moving.wait(lambda: int(client.diagnosis.get("clamped.position_margin", 0)) > before, "the clamp is told in /diagnostics")
    moving.wait(lambda: client.speed() < 0.1 and abs(client.joints[-1].position[last] - limit) < 0.05, "coming to rest at the limit")
    reached = max((state.position[last] - limit) * (1 if limit > robot.home_rad[-1] else -1) for state in list(client.joints))
    assert reached < 0.02, f"{reached:.3f} rad over the limit"
    assert client.status.state == RobotStatus.STATE_FOLLOWING
    moving.drive()
    return Row(moving.driver, words, "clamped.position_margin", "following", None, None, "a command away from it")


def stop(moving: Bench, words: str) -> Row:
    moving.fault_ns = time.time_ns()
    assert moving.client.call("stop").success
    held = moving.held("stop", RobotStatus.STATE_STOPPED)
    return goes_on(moving, words, held, RECOVER)


def _rejected(bench: Bench, name: str) -> int:
    status = bench.client.status
    return dict(zip(status.rejected_names, status.rejected_counts, strict=True)).get(name, 0)


FROM_THE_SENDER: dict[str, Callable[[Bench, str], Row]] = {
    **dict.fromkeys(BAD_COMMANDS, bad_command),
    "foreign source takes over": foreign_source,
    "policy killed": policy_killed,
    "command flood": command_flood,
    "joint limit reached": joint_limit,
    "stop is called": stop,
}
CASES = [(driver, words) for driver in DRIVERS for words in (*COUNTERPARTS[driver].faults, *FROM_THE_SENDER)]


@pytest.mark.parametrize(("driver", "words"), CASES)
def test_fault(moving: Bench, driver: str, words: str, note):
    note(FROM_THE_SENDER.get(words, on_the_device)(moving, words))


def test_the_page_lists_these_cases():
    assert sorted(listed_cases(PAGE)) == sorted(CASES), "docs/faults.md is old: make faults"
