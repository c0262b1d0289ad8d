"""What goes wrong on a rig, over real processes: the arm holds within 200 ms, the fault is named, and the next task runs.

Times are compared by the stamps in the nodes' reports and in the simulator's own log, never by this process's clock.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np
import pytest
from fake_rig import wait_for
from fault_policies import FAULTS, GOOD_CHUNKS
from rig_processes import RigProcesses, Witness

from vla_msgs.msg import RobotStatus
from vla_ros.cli.record import Outcome
from vla_ros.cli.rollout_client import RolloutClient
from vla_ros.core.errors import DeviceError

HOLD_S = 0.2
LOG_S = 0.01  # of simulated time from row to row of the motion log: on a busy machine the arm's time passes more slowly than ours
REST_RAD_S = 0.02  # norm over seven joints; a hold that drifts or trembles is none
MOVING_RAD_S = 0.2


class Bench:
    """The rig, a client that sends tasks, and the witness."""

    def __init__(self, processes: RigProcesses, client: RolloutClient, witness: Witness) -> None:
        self.processes, self.client, self.witness = processes, client, witness
        self.fault_ns = 0

    def start_missing(self) -> None:
        """Starts what was killed, and only that."""
        self.client.wait_until_active(self.processes.start_missing())

    def execute(self, instruction: str, name: str = "", signum: signal.Signals | None = None) -> Outcome:
        """Sends a task; signals node `name`, if any, once the arm follows steadily. `fault_ns` is then."""
        self.fault_ns = time.time_ns()
        waiting = [name] if name else []

        def turn() -> None:
            if waiting and self.client.feedback.chunks >= GOOD_CHUNKS and self.witness.speed_rad_s > MOVING_RAD_S:
                self.fault_ns = time.time_ns()
                self.processes.send_signal(waiting.pop(), signum)

        return self.client.execute(instruction, 20.0, on_turn=turn)

    def check_hold(self, words: str) -> None:
        """The 200 ms begin with the first report that names the fault; the simulator's log says when the arm stood."""
        wait_for(lambda: self.witness.naming(words, self.fault_ns), f"a report that names '{words}'")
        first = self.witness.naming(words, self.fault_ns)[0]
        wait_for(lambda: self.witness.robot_says(first.stamp_ns + 1e9), "a second of hold")
        log = self.witness.motion()
        before = log[(log[:, 0] > first.stamp_ns - 1e9) & (log[:, 0] <= first.stamp_ns)]
        assert before[:, 2].max() > MOVING_RAD_S, (
            f"the arm stood before the fault was named; what was said: {self.witness.naming('', self.fault_ns)[:30]}"
        )
        after = log[log[:, 0] > first.stamp_ns]
        held_s = LOG_S * int(np.flatnonzero(np.append(True, after[:, 2] > REST_RAD_S))[-1])
        print(f"{first.node} '{first.text[:100]}': from {before[-1, 2]:.2f} rad/s at rest after {held_s * 1e3:.0f} ms")
        assert held_s <= HOLD_S, f"ms, commanded, measured rad/s:\n{((after - [first.stamp_ns, 0, 0]) * [1e-6, 1, 1])[:40].round(2)}"
        assert after[-1, 1] <= REST_RAD_S, "it stands, but is told to move"
        assert self.witness.robot_says(self.fault_ns)[-1].state == RobotStatus.STATE_HOLD

    def check_diagnostic(self, node: str, words: str) -> None:
        """Waits until a node names the fault on /diagnostics."""
        wait_for(
            lambda: node in {report.node for report in self.witness.naming(words, self.fault_ns)}, f"'{words}' in diagnostics of {node}"
        )

    def check_works(self) -> None:
        """A new task is taken, runs until its time is up and moves the arm."""
        since_ns = time.time_ns()
        outcome = self.client.execute("circle", 1.5)
        assert outcome.outcome == "time_limit", outcome.reason
        assert outcome.statistics["chunks"] > 0
        log = self.witness.motion()
        assert log[log[:, 0] > since_ns, 2].max() > MOVING_RAD_S


class Benches:
    """One rig for all tests, until one fails: then whatever it has left may not make the others fail, nor its second try."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._folders, self._stack, self._bench = tmp_path_factory, ExitStack(), None

    def running(self) -> Bench:
        if self._bench is None:
            processes = self._stack.enter_context(closing(RigProcesses(self._folders.mktemp("rig"), "fault_policies:Saboteur")))
            witness = self._stack.enter_context(closing(Witness(processes.domain.id)))
            client = self._stack.enter_context(RolloutClient(processes.rig, processes.check, domain_id=processes.domain.id))
            client.wait_until_active(list(processes.specs))
            self._bench = Bench(processes, client, witness)
        return self._bench

    def close(self) -> None:
        self._bench = None
        self._stack.close()


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    with closing(Benches(tmp_path_factory)) as benches:
        yield benches


@pytest.fixture
def bench(benches: Benches, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The rig as new, whatever the test before has left."""
    running = benches.running()
    running.start_missing()
    running.client.recover_robots()
    running.client.reset_scene(5, "")
    running.witness.reports.clear()
    yield running
    if request.node.failed:
        benches.close()


BAD_CHUNKS = {
    "nan": "values are NaN or infinite",
    "channels": "unknown tcp.rw",
    "stale": "s ahead of its observation",
    "workspace": "workspace",
    "jump": "step",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_chunk(bench: Bench, fault: str):
    outcome, words = bench.execute(f"{fault}: circle"), BAD_CHUNKS[fault]
    assert outcome.outcome == "aborted" and words in outcome.reason
    bench.check_hold(words)
    bench.check_diagnostic("/policy", outcome.reason)
    bench.check_works()


def test_policy_killed(bench: Bench):
    with pytest.raises(DeviceError, match="policy node has been silent"):
        bench.execute("circle", "/policy", signal.SIGKILL)
    bench.check_hold("command_timeout")
    bench.check_diagnostic("/arm", "command_timeout")
    bench.start_missing()
    bench.check_works()


@pytest.mark.parametrize(("camera", "signum"), [("front", signal.SIGSTOP), ("wrist", signal.SIGKILL)])
def test_camera_stopped(bench: Bench, camera: str, signum: signal.Signals):
    node, words = f"/camera/{camera}", f"camera {camera}: "
    try:
        outcome = bench.execute("circle", node, signum)
        assert outcome.outcome == "aborted" and outcome.reason.startswith(words)
        # Seen once in five runs: the arm already stood when the killed camera was first named. Why was not found; the other camera
        # may have been late first, so either counts as the detection.
        bench.check_hold("camera ")
        bench.check_diagnostic("/policy", words)
    finally:
        if signum == signal.SIGSTOP:
            bench.processes.send_signal(node, signal.SIGCONT)
    bench.start_missing()
    bench.check_works()


def test_simulation_killed(bench: Bench):
    outcome = bench.execute("circle", "/simulation", signal.SIGKILL)
    assert outcome.outcome == "aborted" and "link_lost" in outcome.reason
    bench.check_diagnostic("/arm", "link_lost")

    bench.start_missing()
    lost_ns = bench.witness.naming("link_lost", bench.fault_ns)[-1].stamp_ns
    wait_for(lambda: [report.state for report in bench.witness.robot_says(lost_ns)][-1:] == [RobotStatus.STATE_HOLD], "the link again")
    # Whatever was commanded when the link broke is not taken up again.
    assert bench.witness.motion()[:, 1].max() < REST_RAD_S
    bench.check_works()
