"""Talks to a robot node as a policy node does: for tests of the robot node."""

from __future__ import annotations

import threading
import time
from array import array

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_msgs.action import MoveToJoints
from vla_msgs.msg import RobotCommand, RobotStatus
from vla_msgs.srv import SetSource
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import Action
from vla_ros.nodes import msgs, qos

ROBOT = load_embodiment("franka").robots["arm"]
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)


class Client:
    """Talks to /arm as a policy does; `velocity` is streamed at 50 Hz while it is set."""

    def __init__(self, domain: int) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("client", context=self.context)
        self.status: RobotStatus | None = None
        self.joints: list[JointState] = []
        self.executed: list[RobotCommand] = []
        self.diagnosis: dict[str, str] = {}
        self.velocity: float | None = None
        self.source = "policy"
        self._sequence = 0
        self._command = self.node.create_publisher(RobotCommand, "/arm/command", qos.COMMAND)
        self.node.create_subscription(RobotStatus, "/arm/status", lambda m: setattr(self, "status", m), qos.STATUS)
        self.node.create_subscription(JointState, "/arm/joint_states", self.joints.append, qos.STATE)
        self.node.create_subscription(RobotCommand, "/arm/executed", self.executed.append, qos.EXECUTED)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)
        self._services = {
            "set_source": self.node.create_client(SetSource, "/arm/set_source"),
            "stop": self.node.create_client(Trigger, "/arm/stop"),
            "recover": self.node.create_client(Trigger, "/arm/recover"),
        }
        self.move = ActionClient(self.node, MoveToJoints, "/arm/move_to_joints")
        self.node.create_timer(0.02, self._stream)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/arm":
                self.diagnosis = {"message": status.message, **{item.key: item.value for item in status.values}}

    def _stream(self) -> None:
        if self.velocity is not None:
            self.send([0.0] * 6 + [self.velocity])

    def send(self, data, *, age_s: float = 0.0, channels=VELOCITIES, source: str = "") -> None:
        """One joint velocity command."""
        self._sequence += 1
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
        wait_for(lambda: self.status.state == RobotStatus.STATE_FOLLOWING and self.speed() > velocity / 2, "the arm follows")

    def held(self, reason: str, state: int = RobotStatus.STATE_HOLD) -> None:
        wait_for(lambda: self.status.state == state and self.status.reason == reason, f"held for {reason}", shown=lambda: self.status)
        wait_for(lambda: self.speed() < 0.02, "standing")

    def close(self) -> None:
        self._executor.shutdown(2.0)
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
