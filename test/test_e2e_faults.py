"""What goes wrong on a rig, over real processes: the arm holds within 200 ms, the fault is named, and the next task runs.

Times are compared by the stamps in the nodes' reports and in the simulator's own log, never by this process's clock.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from fault_policies import FAULTS
from rig_processes import RigProcesses, Witness, wait_for

from vla_msgs.msg import RobotStatus
from vla_ros.cli.rollout_client import RolloutClient
from vla_ros.core.errors import DeviceError

TASK = "sway"
HOLD_NS = 200_000_000
REST_RAD_S = 0.02  # norm over seven joints; a hold that drifts or trembles is none
MOVING_RAD_S = 0.2


class Bench:
    """The rig, a client that sends tasks, and the witness."""

    def __init__(self, processes: RigProcesses, client: RolloutClient, witness: Witness) -> None:
        self.processes, self.client, self.witness = processes, client, witness

    def start_missing(self) -> None:
        """Starts what was killed, and only that."""
        self.client.wait_until_active(self.processes.start_missing())

    def once_moving(self, name: str, signum: signal.Signals):
        """For `execute(on_turn=...)`: signals a node as soon as the arm moves."""
        done = []

        def turn() -> None:
            if not done and self.witness.speed_rad_s > MOVING_RAD_S:
                done.append(name)
                self.processes.send_signal(name, signum)

        return turn

    def check_hold(self, words: str, since_ns: int) -> None:
        """The first report that names the fault begins the 200 ms; the simulator's log says when the arm stood."""
        wait_for(lambda: self.witness.naming(words, since_ns), f"a report that names '{words}'")
        first = self.witness.naming(words, since_ns)[0]
        wait_for(lambda: self.witness.motion()[-1, 0] > first.stamp_ns + 5 * HOLD_NS, "the simulator's log of the hold")
        log = self.witness.motion()
        before = log[(log[:, 0] > first.stamp_ns - 1e9) & (log[:, 0] <= first.stamp_ns)]
        assert before[:, 2].max() > MOVING_RAD_S, "the arm did not move before the fault, so its hold shows nothing"
        after = log[log[:, 0] > first.stamp_ns]
        moving = after[after[:, 1:].max(axis=1) > REST_RAD_S]
        held_ns = moving[-1, 0] - first.stamp_ns if len(moving) else 0.0
        print(f"{first.node} '{first.text[:110]}': at rest after {held_ns * 1e-6:.0f} ms")
        assert held_ns <= HOLD_NS
        assert self.witness.robot_says(since_ns)[-1].state == RobotStatus.STATE_HOLD

    def check_works(self) -> None:
        """A new task is taken, runs until its time is up and moves the arm."""
        since_ns = time.time_ns()
        outcome = self.client.execute(TASK, 1.5)
        assert outcome.outcome == "time_limit", outcome.reason
        assert outcome.statistics["chunks"] > 0
        log = self.witness.motion()
        assert log[log[:, 0] > since_ns, 2].max() > MOVING_RAD_S


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    processes = RigProcesses(tmp_path_factory.mktemp("rig"), "fault_policies:Saboteur")
    try:
        witness = Witness(processes.domain.id)
        with RolloutClient(processes.rig, processes.check, domain_id=processes.domain.id) as client:
            client.wait_until_active(list(processes.specs))
            yield Bench(processes, client, witness)
        witness.close()
    finally:
        processes.close()


@pytest.fixture
def bench(running: Bench) -> Bench:
    """The rig as new, whatever the test before has left."""
    running.start_missing()
    running.client.recover_robots()
    running.client.reset_scene(5, "")
    running.witness.reports.clear()
    return running


BAD_CHUNKS = {
    "nan": "values are NaN or infinite",
    "channels": "unknown tcp.rw",
    "stale": "s ahead of its observation",
    "workspace": "workspace",
    "jump": "step",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_chunk(bench: Bench, fault: str):
    since_ns, words = time.time_ns(), BAD_CHUNKS[fault]
    outcome = bench.client.execute(f"{fault}: {TASK}", 10.0)
    assert outcome.outcome == "aborted" and words in outcome.reason
    bench.check_hold(words, since_ns)
    assert [report.node for report in bench.witness.naming(outcome.reason, since_ns) if report.node == "/policy"], "no named diagnostic"
    bench.check_works()


def test_policy_killed(bench: Bench):
    since_ns = time.time_ns()
    with pytest.raises(DeviceError, match="policy node has been silent"):
        bench.client.execute(TASK, 20.0, on_turn=bench.once_moving("/policy", signal.SIGKILL))
    bench.check_hold("command_timeout", since_ns)
    assert "/arm" in {report.node for report in bench.witness.naming("command_timeout", since_ns)}, "no named diagnostic"
    bench.start_missing()
    bench.check_works()


@pytest.mark.parametrize(("camera", "signum"), [("front", signal.SIGSTOP), ("wrist", signal.SIGKILL)])
def test_camera_stopped(bench: Bench, camera: str, signum: signal.Signals):
    since_ns, words = time.time_ns(), f"camera {camera}: "
    try:
        outcome = bench.client.execute(TASK, 20.0, on_turn=bench.once_moving(f"/camera/{camera}", signum))
        assert outcome.outcome == "aborted" and outcome.reason.startswith(words)
        bench.check_hold(words, since_ns)
        assert "/policy" in {report.node for report in bench.witness.naming(words, since_ns)}, "no named diagnostic"
    finally:
        if signum == signal.SIGSTOP:
            bench.processes.send_signal(f"/camera/{camera}", signal.SIGCONT)
    bench.start_missing()
    bench.check_works()


def test_simulation_killed(bench: Bench):
    since_ns = time.time_ns()
    outcome = bench.client.execute(TASK, 20.0, on_turn=bench.once_moving("/simulation", signal.SIGKILL))
    assert outcome.outcome == "aborted" and "link_lost" in outcome.reason
    assert "/arm" in {report.node for report in bench.witness.naming("link_lost", since_ns)}, "no named diagnostic"

    bench.start_missing()
    restarted_ns = time.time_ns()
    wait_for(lambda: any(report.state == RobotStatus.STATE_HOLD for report in bench.witness.robot_says(restarted_ns)), "the link again")
    # Whatever was commanded when the link broke is not taken up again.
    assert bench.witness.motion()[:, 1].max() < REST_RAD_S
    bench.check_works()
