"""The robot node as a process, on real ROS topics, in front of a simulated control box."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from arm_client import ROBOT, VELOCITIES, Client, result_of, wait_for
from franka_box import FrankaBox

from vla_msgs.action import MoveToJoints
from vla_msgs.msg import RobotStatus
from vla_ros.nodes import msgs

ADDRESS = f"127.0.{os.getpid() % 200 + 20}.3"
RIG = f"""
embodiment: franka
robots:
  arm: {{driver: franka, options: {{address: {ADDRESS}, connect_timeout_s: 10.0, stale_after_s: 0.4}}}}
cameras:
  front: {{driver: nobody, options: {{}}}}
  wrist: {{driver: nobody, options: {{}}}}
"""


@pytest.fixture(scope="module")
def box():
    box = FrankaBox(ADDRESS)
    yield box
    box.kill()


@pytest.fixture(scope="module")
def arm(box, tmp_path_factory):
    domain = os.getpid() % 90 + 10
    rig = tmp_path_factory.mktemp("rig") / "one_arm.yaml"
    rig.write_text(RIG)
    command = [sys.executable, "-m", "vla_ros.nodes.robot_node", "--ros-args", "-r", "__node:=arm", "-p", f"rig:={rig}"]
    command += ["-p", "command_age_limit_s:=0.5", "-p", "command_timeout_s:=0.3"]
    process = subprocess.Popen(command, env=os.environ | {"ROS_DOMAIN_ID": str(domain)})
    client = Client(domain)
    wait_for(lambda: client.status is not None, "the node says that it has no robot", 60.0)
    assert client.status.state == RobotStatus.STATE_DISCONNECTED
    box.start()
    wait_for(lambda: client.status.state == RobotStatus.STATE_HOLD and client.joints, "the node holds", 60.0)
    yield client
    client.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(20.0) == 0


@pytest.fixture(autouse=True)
def at_rest(arm):
    yield
    arm.velocity, arm.source = None, "policy"
    arm.call("recover")
    arm.call("set_source", source="none")
    wait_for(lambda: arm.speed() < 0.02, "standing")


def test_joint_states_name_all_joints_and_the_gripper(arm):
    newest = arm.joints[-1]
    assert tuple(newest.name) == (*ROBOT.joints, "gripper")
    assert abs(time.time_ns() - msgs.stamp_ns(newest.header.stamp)) < 2_000_000_000


def test_the_selected_source_drives_and_what_was_executed_is_told(arm):
    arm.drive()
    assert arm.executed[-1].source == "policy"
    assert list(arm.executed[-1].channels) == list(VELOCITIES)
    arm.velocity = None
    arm.held("command_timeout")
    arm.velocity = 0.2
    wait_for(lambda: arm.status.state == RobotStatus.STATE_FOLLOWING, "goes on")


def test_another_source_is_rejected_and_counted(arm):
    arm.source = "leader"
    arm.velocity = 0.2
    assert arm.call("set_source", source="policy").success
    wait_for(lambda: dict(zip(arm.status.rejected_names, arm.status.rejected_counts, strict=True)).get("source", 0) > 3, "counted")
    assert arm.status.state == RobotStatus.STATE_HOLD
    assert arm.speed() < 0.02


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("not_finite", {"data": [float("nan")] * 7}),
        ("channels", {"data": [0.0] * 7, "channels": ("elbow.velocity", *VELOCITIES[1:])}),
        ("channels", {"data": [0.0] * 5}),
        ("stale", {"data": [0.0] * 7, "age_s": 3.0}),
        ("step", {"data": [1.5, *ROBOT.home_rad[1:]], "channels": tuple(f"{joint}.position" for joint in ROBOT.joints)}),
        ("limits", {"data": [9.0, *ROBOT.home_rad[1:]], "channels": tuple(f"{joint}.position" for joint in ROBOT.joints)}),
    ],
)
def test_a_bad_command_holds_with_its_name(arm, reason, bad):
    arm.drive()
    arm.send(**bad)
    arm.held(reason)
    assert arm.status.detail
    wait_for(lambda: arm.diagnosis.get("reason") == reason, "named in /diagnostics")
    arm.drive()


def test_stop_latches_until_recover(arm):
    arm.drive()
    assert arm.call("stop").success
    arm.held("stop", RobotStatus.STATE_STOPPED)
    refused = arm.call("set_source", source="policy")
    assert not refused.success
    assert "recover" in refused.message
    assert arm.call("recover").success
    assert arm.status.state != RobotStatus.STATE_FOLLOWING
    arm.drive()


def test_move_to_joints_goes_there_and_refuses_what_is_wrong(arm):
    assert arm.move.wait_for_server(20.0)
    goal = MoveToJoints.Goal(joint_names=["fr3_joint1", "fr3_joint7"], position=[0.2, 0.9], speed=0.3)
    handle = result_of(arm.move.send_goal_async(goal))
    assert handle.accepted
    result = result_of(handle.get_result_async(), 60.0).result
    assert result.success, result.message
    assert arm.joints[-1].position[0] == pytest.approx(0.2, abs=0.02)
    assert arm.status.source == "none"
    handle = result_of(arm.move.send_goal_async(MoveToJoints.Goal(joint_names=["fr3_joint9"], position=[0.0])))
    result = result_of(handle.get_result_async()).result
    assert not result.success
    assert "fr3_joint9" in result.message


def test_a_lost_link_is_named_and_comes_back_by_itself(arm, box):
    arm.drive()
    box.kill()
    wait_for(lambda: arm.status.state == RobotStatus.STATE_DISCONNECTED and arm.status.reason == "link_lost", "link_lost")
    wait_for(lambda: arm.diagnosis.get("reason") == "link_lost", "named in /diagnostics")
    assert not arm.call("set_source", source="policy").success
    arm.velocity = None
    box.start()
    wait_for(lambda: arm.status.state == RobotStatus.STATE_HOLD, "connected again")
    arm.drive()


def test_a_wrong_option_ends_the_process_with_a_sentence(tmp_path):
    rig = tmp_path / "wrong.yaml"
    rig.write_text(RIG.replace("stale_after_s", "stale_afterwards_s"))
    command = [sys.executable, "-m", "vla_ros.nodes.robot_node", "--ros-args", "-r", "__node:=arm", "-p", f"rig:={rig}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, env=os.environ | {"ROS_DOMAIN_ID": "101"}, check=False)
    assert done.returncode == 1
    assert "stale_afterwards_s" in done.stderr
