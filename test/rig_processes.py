"""The simulated rig with every node a process of the test's own: each can be stopped, killed and started again by its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_msgs.msg import RobotStatus
from vla_ros.cli.processes import command_line, die_with_parent, full_name
from vla_ros.cli.running_rig import OwnDomain, write_own_rig
from vla_ros.core.embodiment import find_config
from vla_ros.core.rig import load_rig, node_specs
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.spinning import Spinning

ROOT = Path(__file__).parents[1]
# A busy machine must not bring about other faults than the test's: these only say how late a fault is noticed.
PATIENCE = {
    "policy_node": {"observation_max_age_s": 1.0, "hold_limit_s": 2.0},
    "robot_node": {"command_age_limit_s": 1.0},
}
LINK_PATIENCE_S = 0.5
# An arm that catches up after the machine was busy does so at this speed: brakes of 10 rad/s^2 need 200 ms for the rig's 1 m/s alone.
TCP_VELOCITY_MAX_M_S = 0.3


def _write_rig(folder: Path, address: str) -> Path:
    embodiment = yaml.safe_load(find_config("embodiments", "franka").read_text())
    embodiment["urdf"] = str(ROOT / embodiment["urdf"])
    embodiment["robots"]["arm"]["tcp_velocity_max_m_s"] = TCP_VELOCITY_MAX_M_S
    (folder / "franka.yaml").write_text(yaml.safe_dump(embodiment))
    path = write_own_rig("franka_sim", address, folder)
    rig = yaml.safe_load(path.read_text())
    rig["embodiment"] = "./franka.yaml"
    rig["robots"]["arm"]["options"]["stale_after_s"] = LINK_PATIENCE_S
    path.write_text(yaml.safe_dump(rig))
    return path


class RigProcesses:
    """The nodes of a copy of `franka_sim.yaml`, on a ROS domain and an address of their own; logs are `<folder>/<node>.log`."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.domain, self._folder = OwnDomain(), folder
        self.rig = load_rig(_write_rig(folder, self.domain.address))
        specs = node_specs(self.rig, policy=policy, executor="first")  # the newest chunk alone: a fault is not averaged away
        self.specs = {full_name(spec): replace(spec, parameters=spec.parameters | PATIENCE.get(spec.executable, {})) for spec in specs}
        paths = os.pathsep.join([str(ROOT / "test"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._environment = os.environ | {"PYTHONPATH": paths, "ROS_DOMAIN_ID": str(self.domain.id)}
        self._running: dict[str, subprocess.Popen] = {}
        self.start_missing()

    def start_missing(self) -> list[str]:
        """Starts the nodes that do not run; returns their names."""
        missing = [name for name in self.specs if name not in self._running]
        for name in missing:
            with (self._folder / f"{name[1:].replace('/', '_')}.log").open("a") as log:
                self._running[name] = subprocess.Popen(
                    command_line(self.specs[name]), env=self._environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
                )
        return missing

    def send_signal(self, name: str, signum: signal.Signals) -> None:
        """Signals the process of one node; after SIGKILL it is gone until `start_missing`."""
        process = self._running[name]
        process.send_signal(signum)
        if signum == signal.SIGKILL:
            process.wait()
            del self._running[name]

    def check(self) -> None:
        """Fails when a node has ended by itself."""
        ended = [name for name, process in self._running.items() if process.poll() is not None]
        assert not ended, f"{ended} ended by themselves, see the logs in {self._folder}"

    def close(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
        for process in self._running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.domain.close()


@dataclass(frozen=True)
class Report:
    """What a node said of itself at `stamp_ns`: a robot's status or a line of /diagnostics."""

    stamp_ns: int
    node: str
    state: int
    text: str


class Witness:
    """Listens to what the nodes of a rig report, in a thread of its own, and asks the simulator what the arm really did."""

    def __init__(self, domain_id: int) -> None:
        self.reports: list[Report] = []
        self.speed_rad_s = 0.0
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("witness", context=self._context, enable_rosout=False)
        self._node.create_subscription(RobotStatus, "/arm/status", self._on_status, QoSProfile(depth=100))
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, QoSProfile(depth=100))
        self._node.create_subscription(JointState, "/arm/joint_states", self._on_joints, qos.STATE)
        self._log = self._node.create_client(Trigger, "/simulation/motion_log")
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self._node)
        self._spinning = Spinning(executor, "ear")

    def close(self) -> None:
        self._spinning.close()
        self._spinning.check()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def robot_says(self, since_ns: int) -> list[Report]:
        return [report for report in list(self.reports) if report.node == "/arm/status" and report.stamp_ns >= since_ns]

    def naming(self, words: str, since_ns: int) -> list[Report]:
        """The reports since then that name a fault, oldest first."""
        found = [report for report in list(self.reports) if report.stamp_ns >= since_ns and words in report.text]
        return sorted(found, key=lambda report: report.stamp_ns)

    def motion(self) -> np.ndarray:
        """[N, 3]: stamp (ns), commanded and measured joint speed (norm, rad/s) of the last 20 s, from the simulator's own log."""
        columns = json.loads(self._answer())
        return np.column_stack([columns["stamp_ns"], columns["commanded_rad_s"], columns["measured_rad_s"]])

    def _answer(self) -> str:
        """Asks until there is an answer: a request that DDS sends to a killed simulation only is lost."""
        for _ in range(30):
            asked, deadline = self._log.call_async(Trigger.Request()), time.monotonic() + 1.0
            while not asked.done() and time.monotonic() < deadline:
                time.sleep(0.005)
            if asked.done() and asked.result().success:
                return asked.result().message
        raise AssertionError("no answer of /simulation/motion_log")

    def _on_status(self, message: RobotStatus) -> None:
        text = f"{message.reason}: {message.detail}"
        self.reports.append(Report(msgs.stamp_ns(message.stamp), "/arm/status", message.state, text))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        stamp_ns = msgs.stamp_ns(message.header.stamp)
        self.reports += [Report(stamp_ns, status.name, int.from_bytes(status.level, "little"), status.message) for status in message.status]

    def _on_joints(self, message: JointState) -> None:
        self.speed_rad_s = float(np.linalg.norm(message.velocity[:7]))
