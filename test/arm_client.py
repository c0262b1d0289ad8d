"""Talks to a robot node as a policy node does: for tests of the robot node."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_msgs.action import MoveToJoints
from vla_msgs.msg import RobotCommand, RobotStatus
from vla_msgs.srv import SetSource
from vla_ros.core.embodiment import RobotDescription, load_embodiment
from vla_ros.core.types import Action
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.spinning import Spinning

ROBOT = load_embodiment("franka").robots["arm"]
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)


@dataclass(frozen=True)
class Report:
    """What the robot node said of itself at `stamp_ns`; `topic` is "status" or "diagnostics", which has no state."""

    stamp_ns: int
    topic: str
    reason: str
    detail: str
    state: int | None = None


class Client:
    """Talks to the node of one arm as a policy does; `velocity` (rad/s, of `joint`) is streamed at 50 Hz while it is set."""

    def __init__(self, domain: int, robot: RobotDescription = ROBOT) -> None:
        self.robot, name = robot, f"/{robot.name}"
        self.velocities = tuple(f"{joint}.velocity" for joint in robot.joints)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("client", context=self.context)
        self.status: RobotStatus | None = None
        self.reports: list[Report] = []
        self.joints: list[JointState] = []
        self.executed: list[RobotCommand] = []
        self.diagnosis: dict[str, str] = {}
        self.velocity: float | None = None
        self.joint = len(robot.joints) - 1
        self.source = "policy"
        self._sequence = 0
        self._command = self.node.create_publisher(RobotCommand, f"{name}/command", qos.COMMAND)
        every_status = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(RobotStatus, f"{name}/status", self._on_status, every_status)
        self.node.create_subscription(JointState, f"{name}/joint_states", self.joints.append, qos.STATE)
        self.node.create_subscription(RobotCommand, f"{name}/executed", self.executed.append, qos.EXECUTED)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)
        self._services = {
            "set_source": self.node.create_client(SetSource, f"{name}/set_source"),
            "stop": self.node.create_client(Trigger, f"{name}/stop"),
            "recover": self.node.create_client(Trigger, f"{name}/recover"),
        }
        self.move = ActionClient(self.node, MoveToJoints, f"{name}/move_to_joints")
        self.node.create_timer(0.02, self._stream)
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(self.node)
        self._spinning = Spinning(executor, "ear")

    def _on_status(self, message: RobotStatus) -> None:
        self.status = message
        self.reports.append(Report(msgs.stamp_ns(message.stamp), "status", message.reason, message.detail, message.state))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"/{self.robot.name}":
                self.diagnosis = {"message": status.message, **{item.key: item.value for item in status.values}}
                reason, detail = (self.diagnosis.get(key, "") for key in ("reason", "detail"))
                self.reports.append(Report(msgs.stamp_ns(message.header.stamp), "diagnostics", reason, detail))

    def _stream(self) -> None:
        if self.velocity is not None:
            self.send([self.velocity if i == self.joint else 0.0 for i in range(len(self.velocities))])

    def send(self, data, *, age_s: float = 0.0, channels=(), source: str = "") -> None:
        """One command, of joint velocities without `channels`."""
        self._sequence += 1
        channels = channels or self.velocities
        stamp_ns = time.time_ns() - round(age_s * 1e9)
        message = msgs.command_msg(Action(channels, np.zeros(len(channels)), stamp_ns, source or self.source, self._sequence))
        message.data = array("d", data)
        self._command.publish(message)

    def call(self, name: str, **fields):
        service = self._services[name]
        assert service.wait_for_service(20.0), name
        return result_of(service.call_async(service.srv_type.Request(**fields)))

    def speed(self) -> float:
        return max(map(abs, self.joints[-1].velocity)) if self.joints else 0.0

    def drive(self, velocity: float = 0.2) -> None:
        """Selects "policy" and streams until the arm moves."""
        assert self.call("set_source", source="policy").success
        self.velocity = velocity
        wait_for(lambda: self.status.state == RobotStatus.STATE_FOLLOWING and self.speed() > abs(velocity) / 2, "the arm follows")

    def held(self, reason: str, state: int = RobotStatus.STATE_HOLD) -> None:
        wait_for(lambda: self.status.state == state and self.status.reason == reason, f"held for {reason}", shown=lambda: self.status)
        wait_for(lambda: self.speed() < 0.02, "standing")

    def named(self, reason: str, since_ns: int, topic: str = "") -> list[Report]:
        """The reports since then that name `reason`, oldest first."""
        found = [report for report in list(self.reports) if report.stamp_ns >= since_ns and report.reason == reason]
        return sorted((report for report in found if topic in report.topic), key=lambda report: report.stamp_ns)

    def close(self) -> None:
        self._spinning.close()
        self._spinning.check()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def wait_for(condition, what: str, timeout_s: float = 30.0, shown=lambda: "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what} {shown()}")
        time.sleep(0.005)


def result_of(future, timeout_s: float = 30.0):
    wait_for(future.done, "an answer", timeout_s)
    return future.result()
