"""The robot node and collisions, on real topics: no message and no parameter switches the check off, and the other arm counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from following_arm import FollowingArm
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_msgs.srv import SetSource
from vla_ros.core.channels import TCP_POSE
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import Action, RobotState
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.robot_node import RobotNode
from vla_ros.robots.kinematics import Kinematics

DOMAIN = os.getpid() % 90 + 10
LOW = np.array([0.0, 0.92, 0.0, -2.385, 0.0, 4.282, 0.785])  # fr3_link5 is a little more than the margin above the table


class Bench:
    """One robot node in front of an arm without physics, and a client beside it, in one process."""

    def __init__(self, folder, embodiment: str, arm: str) -> None:
        arms = load_embodiment(embodiment)
        rig = folder / "bench.yaml"
        drivers = ", ".join(f"{name}: {{driver: 'following_arm:FollowingArm', options: {{}}}}" for name in arms.robots)
        cameras = ", ".join(f"{name}: {{driver: nobody, options: {{}}}}" for name in arms.cameras)
        rig.write_text(f"embodiment: {embodiment}\nrobots: {{{drivers}}}\ncameras: {{{cameras}}}\n")
        rclpy.init(args=["--ros-args", "-r", f"{arm}:__node:={arm}", "-p", f"rig:={rig}", "-p", f"device:={arm}"], domain_id=DOMAIN)
        self.node, self.client = RobotNode(), rclpy.create_node("client")
        self.description = arms.robots[arm]
        self.status, self.health = RobotStatus(), {}
        name = self.node.get_name()
        self._command = self.client.create_publisher(RobotCommand, f"/{name}/command", qos.COMMAND)
        self._beside = self.client.create_publisher(JointState, "/right/joint_states", qos.STATE)
        self.client.create_subscription(RobotStatus, f"/{name}/status", lambda message: setattr(self, "status", message), qos.STATUS)
        self.client.create_subscription(DiagnosticArray, "/diagnostics", self._on_health, qos.DIAGNOSTICS)
        self._source = self.client.create_client(SetSource, f"/{name}/set_source")
        self._executor = SingleThreadedExecutor()
        for node in (self.node, self.client):
            self._executor.add_node(node)
        self.until(lambda: self.status.state == RobotStatus.STATE_HOLD and self._command.get_subscription_count(), "the node holds")

    @property
    def arm(self) -> FollowingArm:
        return self.node._robot

    @property
    def rejected(self) -> dict[str, int]:
        return dict(zip(self.status.rejected_names, self.status.rejected_counts, strict=True))

    def until(self, condition, what: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            self._executor.spin_once(timeout_sec=0.02)

    def select(self, source: str = "policy") -> None:
        asked = self._source.call_async(SetSource.Request(source=source))
        self.until(asked.done, "an answer to set_source")
        assert asked.result().success, asked.result().message

    def send(self, channels: tuple[str, ...], data: np.ndarray, **fields: object) -> bool:
        """Sends one command and waits until it was counted; returns whether it was accepted."""
        message = msgs.command_msg(Action(channels, data, time.time_ns(), "policy"))
        for name, value in fields.items():
            setattr(message, name, value)
        accepted, counted = self.status.accepted, sum(self.rejected.values())
        self._command.publish(message)
        self.until(lambda: (self.status.accepted, sum(self.rejected.values())) != (accepted, counted), "the command was counted")
        return self.status.accepted > accepted

    def show_beside(self, position: np.ndarray) -> None:
        rest = np.zeros(len(position))
        self._beside.publish(msgs.joint_state_msg(RobotState(time.time_ns(), self.description.joints, position, rest, rest, 0.0)))

    def close(self) -> None:
        for node in (self.node, self.client):
            self._executor.remove_node(node)
            node.destroy_node()
        rclpy.shutdown()

    def _on_health(self, message: DiagnosticArray) -> None:
        self.health = {item.key: item.value for item in message.status[0].values} | {"message": message.status[0].message}


@pytest.fixture
def franka(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path, "franka", "arm")
    bench.arm.position = LOW.copy()
    bench.until(lambda: np.array_equal(bench.node._gate.measured.position, LOW), "measured there")
    yield bench
    bench.close()


@pytest.fixture
def left(tmp_path) -> Iterator[Bench]:
    bench = Bench(tmp_path, "aloha_piper", "left")
    yield bench
    bench.close()


def lower(bench: Bench) -> tuple[tuple[str, ...], np.ndarray]:
    return tuple(f"{joint}.position" for joint in bench.description.joints), bench.arm.position + 0.05 * np.eye(7)[1]


def test_no_field_of_a_command_switches_the_check_off(franka: Bench) -> None:
    tried = {
        "mode": [RobotCommand.MODE_JOINT_VELOCITY, RobotCommand.MODE_TCP_POSE, 200],
        "reason": ["collision", "off", "force"],
        "sequence": [0, 2**64 - 1],
    }
    # what is not tried: header and source have checks of their own, channels and data are the command
    assert set(RobotCommand.get_fields_and_field_types()) - set(tried) == {"header", "channels", "data", "source"}
    for field, values in tried.items():
        for value in values:
            before = franka.rejected.get("collision", 0)
            franka.select()
            assert not franka.send(*lower(franka), **{field: value}), (field, value)
            if field != "mode":
                assert franka.rejected["collision"] == before + 1, (field, value)
    franka.select()
    assert not franka.send(*lower(franka))
    assert franka.status.state == RobotStatus.STATE_HOLD and franka.status.reason == "collision"
    assert "fr3_link5" in franka.status.detail and "table" in franka.status.detail
    np.testing.assert_array_equal(franka.arm.position, LOW)


def test_no_parameter_switches_the_check_off(franka: Bench) -> None:
    """None is about it, and none can be set on a running node."""
    known = {"rig", "device", "autostart", "state_rate_hz", "command_timeout_s", "command_age_limit_s"}
    of_ros = {"use_sim_time", "start_type_description_service"}
    names = {name for name in franka.node.list_parameters([], 0).names if not name.startswith("qos_overrides.")}
    assert names - of_ros == known
    for name in known:
        (outcome,) = franka.node.set_parameters([franka.node.get_parameter(name)])
        assert not outcome.successful, f"{name} can be set on the running node"
    franka.select()
    assert not franka.send(*lower(franka))
    assert franka.status.reason == "collision"


def across(bench: Bench) -> bool:
    """Moves the left TCP 1 cm to the right; returns whether the command was accepted."""
    target = Kinematics(bench.description).tcp(bench.arm.position)
    target[1] -= 0.01
    return bench.send(TCP_POSE, target)


def test_the_other_arm_is_kept_away_from(left: Bench) -> None:
    right = load_embodiment("aloha_piper").robots["right"]
    kinematics, position = Kinematics(right), np.array(right.home_rad)
    target = kinematics.tcp(position) + 0.28 * np.eye(6)[1]
    for _ in range(20):
        position = kinematics.ahead(position, target)
    left.select()
    for _ in range(60):
        left.show_beside(position)
        if not across(left):
            break
    assert left.status.reason == "collision", (left.status.reason, left.status.detail)
    assert "left_" in left.status.detail and "right_" in left.status.detail
    here = Kinematics(left.description).tcp(left.arm.position)
    assert here[1] > target[1] + 0.05
    assert "other_arm" not in left.health or "old" in left.health["other_arm"]


def test_an_unknown_other_arm_is_told(left: Bench) -> None:
    left.until(lambda: "no joint states of right" in left.health.get("other_arm", ""), "told in diagnostics")
    assert left.health["message"].endswith("other arm unknown")
    left.show_beside(np.array(load_embodiment("aloha_piper").robots["right"].home_rad))
    left.until(lambda: "other_arm" not in left.health, "known")
    left.until(lambda: "s old, limit 0.5 s" in left.health.get("other_arm", ""), "told again when it has gone")
