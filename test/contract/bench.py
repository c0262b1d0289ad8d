"""One driver's robot node as a process, its device as a box, and a client that drives it as a policy does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from arm_client import Client, Report, wait_for
from counterparts import COUNTERPARTS, HERE, KILL, Fault

from vla_msgs.msg import RobotStatus
from vla_ros.cli.processes import die_with_parent
from vla_ros.cli.running_rig import OwnDomain
from vla_ros.core.embodiment import find_config, load_embodiment

DRIVE_RAD_S = 0.4
MOVING_RAD_S = 0.15
REST_RAD_S = 0.02  # norm over the joints; a hold that drifts or trembles is none
CREPT_RAD = 0.01  # servos that take hold again do so at the nearest step of their encoders
HOLD_S = 0.2
LOG_STEP_S = 0.01
ROOM_RAD = 0.9  # of the driven joint to either side of home, so that its limit is soon reached
# A busy machine must not bring about other faults than the test's: these only say how late a fault is noticed.
TIMEOUT_S, AGE_LIMIT_S = 0.3, 0.5


@dataclass(frozen=True)
class Held:
    """How a fault went: who told what, and when the arm stood (ms after the fault, and after it was told)."""

    report: Report
    told_ms: float
    rest_ms: float


def write_rig(folder: Path, driver: str, options: dict[str, object]) -> Path:
    """A rig of the driver's embodiment, its last joint kept near home; arms that are not under test have no driver."""
    counterpart = COUNTERPARTS[driver]
    given, content = load_embodiment(counterpart.embodiment), yaml.safe_load(find_config("embodiments", counterpart.embodiment).read_text())
    content["urdf"] = given.urdf
    for name, robot in content["robots"].items():
        if "urdf" in robot:
            robot["urdf"] = given.robots[name].urdf
        home = robot["home_rad"][-1]
        robot["position_min_rad"][-1] = max(robot["position_min_rad"][-1], home - ROOM_RAD)
        robot["position_max_rad"][-1] = min(robot["position_max_rad"][-1], home + ROOM_RAD)
    (folder / "embodiment.yaml").write_text(yaml.safe_dump(content))
    robots = {name: {"driver": "nobody"} for name in given.robots} | {counterpart.arm: {"driver": driver, "options": options}}
    rig = {"embodiment": "./embodiment.yaml", "robots": robots, "cameras": {name: {"driver": "external"} for name in given.cameras}}
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(rig))
    return path


class Bench:
    """Context manager: node, box and client, each of which ends with it."""

    def __init__(self, driver: str, folder: Path) -> None:
        self.driver, self._counterpart = driver, COUNTERPARTS[driver]
        self._stack = ExitStack()
        self._domain = OwnDomain()
        self._stack.callback(self._domain.close)
        options = self._counterpart.filled(self._counterpart.options, self._domain.address, folder)
        self.rig = write_rig(folder, driver, options)
        self.robot = load_embodiment(self.rig.parent / "embodiment.yaml").robots[self._counterpart.arm]
        self._environment = {"ROS_DOMAIN_ID": str(self._domain.id)}
        self.box = self._counterpart.box(options, self._environment)
        self._log = folder / "node.log"
        self._node: subprocess.Popen | None = None
        self.fault_ns = 0

    def __enter__(self) -> Bench:
        with self._stack as stack:
            stack.enter_context(self.box)
            stack.callback(self.kill_node)
            self.start_node()
            self.client = Client(self._domain.id, self.robot)
            stack.callback(self.client.close)
            self.wait_for_hold(60.0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def start_node(self) -> None:
        command = [sys.executable, "-m", "vla_ros.nodes.robot_node", "--ros-args", "-r", f"__node:={self.robot.name}"]
        command += ["-p", f"rig:={self.rig}", "-p", f"command_age_limit_s:={AGE_LIMIT_S}", "-p", f"command_timeout_s:={TIMEOUT_S}"]
        with self._log.open("a") as log:
            self._node = subprocess.Popen(
                command, env=os.environ | self._environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=partial(die_with_parent, 9)
            )

    def kill_node(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            node.kill()
            node.wait()

    def another_policy(self) -> subprocess.Popen:
        """A process that drives the last joint as the client does, as source "policy"."""
        command = [
            sys.executable,
            str(HERE / "sender.py"),
            str(self._domain.id),
            str(self.rig),
            self.robot.name,
            str(self.away_from_limit()),
        ]
        return subprocess.Popen(command, env=os.environ | self._environment, preexec_fn=partial(die_with_parent, 9))

    # What a person does.

    def wait_for_hold(self, timeout_s: float = 20.0) -> None:
        self.wait(
            lambda: self.client.status is not None and self.client.status.state == RobotStatus.STATE_HOLD, "the node holds", timeout_s
        )
        self.wait(lambda: self.client.speed() < REST_RAD_S, "standing")

    def wait(self, condition, what: str, timeout_s: float = 20.0) -> None:
        """As `wait_for`; the failure shows what the node says."""
        wait_for(condition, f"{self.driver}: {what}", timeout_s, lambda: f"{self.client.status}\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def away_from_limit(self) -> float:
        """The velocity with which the driven joint goes towards home, rad/s."""
        joint = self.client.joint
        return DRIVE_RAD_S if self.client.joints[-1].position[joint] < self.robot.home_rad[joint] else -DRIVE_RAD_S

    def drive(self) -> None:
        """Streams until the arm moves."""
        self.client.source = "policy"
        self.client.drive(self.away_from_limit())

    def drive_steadily(self) -> None:
        """Streams until the arm has moved for 0.1 s, by the device's own account."""
        self.drive()
        self.wait(lambda: self.box.motion()[-10:, 1].mean() > MOVING_RAD_S, "steady motion")
        self.fault_ns = time.time_ns()

    def break_device(self, fault: Fault) -> None:
        self.fault_ns = time.time_ns()
        if fault.inject == KILL:
            assert self.box.motion()[-10:, 1].max() > MOVING_RAD_S, "the arm stood before the fault"
            self.box.kill()
        else:
            self.box.inject(fault.inject)

    def mend_device(self, fault: Fault) -> None:
        if fault.inject == KILL:
            self.box.start()
        else:
            self.box.clear()

    def recover(self) -> int:
        """Calls ~/recover until it succeeds, as a person would; returns how often."""
        for attempt in range(1, 11):
            answer = self.client.call("recover")
            if answer.success:
                self.wait_for_hold()
                return attempt
            time.sleep(0.5)
        raise AssertionError(f"{self.driver}: ~/recover fails: {answer.message}\n{self.log_end()}")

    # What is looked at.

    def told(self, reason: str) -> Report:
        """Waits until the fault is named in the status and in /diagnostics; returns the first report that names it."""
        named = partial(self.client.named, reason, self.fault_ns)
        self.wait(lambda: named("status"), f"'{reason}' in ~/status")
        self.wait(lambda: named("diagnostics"), f"'{reason}' in /diagnostics")
        return named()[0]

    def held(self, reason: str, *states: int, dead: bool = False) -> Held:
        """Checks that the fault is told, and that the arm then rests within HOLD_S and for good, by the device's own account.

        `states`: what the node may be in half a second later. `dead`: the device's process is gone.
        """
        report = self.told(reason)
        assert self.client.named(reason, self.fault_ns, "status")[0].detail, "a reason without a sentence"
        self.wait(lambda: self.client.reports[-1].stamp_ns > report.stamp_ns + 0.5e9, "half a second of hold")
        assert self.client.status.state in states, self.client.status
        if self.client.status.state == states[0]:
            assert self.client.status.reason == reason, self.client.status
        told_ms = (report.stamp_ns - self.fault_ns) * 1e-6
        if dead:  # nothing is left that could move, nor tell of it
            return Held(report, told_ms, float("nan"))
        log = self.box.motion()
        before, after = log[log[:, 0] <= report.stamp_ns], log[log[:, 0] > report.stamp_ns]
        moved = before[before[:, 0] > self.fault_ns - 0.3e9, 1]
        assert len(moved) and moved.max() > MOVING_RAD_S, "the arm stood before the fault"
        rest_s = LOG_STEP_S * int(np.flatnonzero(np.append(True, after[:, 1] > REST_RAD_S))[-1])
        assert rest_s <= HOLD_S, f"ms after it was told, rad/s:\n{((after - [report.stamp_ns, 0]) * [1e-6, 1])[:60].round(2)}"
        return Held(report, told_ms, rest_s * 1e3)

    def stayed_at_rest(self, held: Held) -> None:
        """Checks that nothing has moved since, whatever the policy goes on sending."""
        log = self.box.motion()
        later = log[log[:, 0] > held.report.stamp_ns + 2 * HOLD_S * 1e9, 1]
        crept_rad = LOG_STEP_S * later[later > REST_RAD_S].sum()
        assert crept_rad <= CREPT_RAD, f"moved by {crept_rad:.4f} rad before a source was selected"
