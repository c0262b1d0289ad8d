"""urdf/piper.xacro on one arm and on two, against the kinematics of piper_sdk and against MuJoCo."""

from __future__ import annotations

import itertools
import math

import mujoco
import numpy as np
import pinocchio
import pytest
from piper_sdk.kinematics import C_PiperForwardKinematics

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.urdf import load_urdf
from vla_ros.robots.kinematics import Kinematics, pose_error

ARMS = {("piper", "arm"): (0.0, ""), ("aloha_piper", "left"): (0.3, "left_"), ("aloha_piper", "right"): (-0.3, "right_")}
ROBOTS = {key: load_embodiment(key[0]).robots[key[1]] for key in ARMS}
POST_M, TCP_M = 0.2, 0.1358


def of_the_sdk(position: np.ndarray) -> np.ndarray:
    """The SDK's pose of link 6 [4, 4] in the foot of the arm, for firmware with the 2 degree offset of joints 2 and 3."""
    x, y, z, *rpy = C_PiperForwardKinematics(dh_is_offset=0x01).CalFK(list(position))[5]
    pose = np.eye(4)
    pose[:3, :3] = pinocchio.rpy.rpyToMatrix(*map(math.radians, rpy))
    pose[:3, 3] = np.array([x, y, z]) * 1e-3
    return pose


def positions(robot, count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(robot.position_min_rad, robot.position_max_rad, (count, 6))


@pytest.mark.parametrize("key", ARMS, ids="_".join)
def test_forward_kinematics_is_that_of_the_sdk(key):
    robot, kinematics = ROBOTS[key], Kinematics(ROBOTS[key])
    foot, tool = np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])
    foot[:3, 3], tool[2, 3] = (0.0, ARMS[key][0], POST_M), TCP_M
    for position in positions(robot, 100):
        error = pose_error(foot @ of_the_sdk(position) @ tool, kinematics.forward(position))
        assert np.linalg.norm(error[:3]) < 1e-4  # m
        assert np.linalg.norm(error[3:]) < math.radians(0.01)


@pytest.mark.parametrize("key", ARMS, ids="_".join)
def test_mujoco_loads_the_same_arm(key):
    robot, prefix = ROBOTS[key], ARMS[key][1]
    spec = mujoco.MjSpec.from_string(load_urdf(robot.urdf))
    spec.compiler.fusestatic = False
    model = spec.compile()
    data, kinematics = mujoco.MjData(model), Kinematics(robot)
    for position in positions(robot, 20):
        for name, value in zip(robot.joints, position, strict=True):
            data.joint(prefix + name).qpos = value
        mujoco.mj_kinematics(model, data)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = data.body(robot.tcp_frame).xmat.reshape(3, 3), data.body(robot.tcp_frame).xpos
        np.testing.assert_allclose(kinematics.forward(position), pose, atol=1e-6)
    # the data sheet's 4.2 kg, and the gripper
    links = [prefix + name for name in ("piper_base", *(f"link{i}" for i in range(1, 7)))]
    assert sum(model.body(name).mass[0] for name in links) == pytest.approx(4.2, abs=0.01)


@pytest.mark.parametrize("key", ARMS, ids="_".join)
def test_limits_of_the_urdf_are_those_of_the_embodiment(key):
    robot, prefix = ROBOTS[key], ARMS[key][1]
    model = pinocchio.buildModelFromXML(load_urdf(robot.urdf))
    index = [model.joints[model.getJointId(prefix + name)].idx_q for name in robot.joints]
    np.testing.assert_allclose(model.lowerPositionLimit[index], robot.position_min_rad)
    np.testing.assert_allclose(model.upperPositionLimit[index], robot.position_max_rad)
    assert (model.velocityLimit[index] >= robot.velocity_max_rad_s).all()
    gripper = model.joints[model.getJointId(f"{prefix}gripper")].idx_q
    assert model.upperPositionLimit[gripper] == robot.gripper.width_max_m


def test_home_points_straight_down_with_the_fingers_along_y():
    pose = Kinematics(ROBOTS["piper", "arm"]).forward(np.array(ROBOTS["piper", "arm"].home_rad))
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-3)
    np.testing.assert_allclose(pose[:3, 3], [0.29, 0.0, 0.20], atol=1e-3)


def test_the_table_is_reached_pointing_straight_down():
    robot = ROBOTS["piper", "arm"]
    kinematics, home = Kinematics(robot), np.array(robot.home_rad)
    for x, y, z, yaw in itertools.product((0.2, 0.3, 0.4), (-0.2, 0.0, 0.2), (0.02, 0.12, 0.22), (-math.pi / 4, 0.0, math.pi / 4)):
        target = np.eye(4)
        target[:3, :3] = pinocchio.rpy.rpyToMatrix(math.pi, 0.0, yaw)
        target[:3, 3] = x, y, z
        position = home + np.array([math.atan2(y, x), 0, 0, 0, 0, math.atan2(y, x) - yaw])
        for _ in range(60):
            error = pose_error(target, kinematics.forward(position))
            position = position + 0.5 * kinematics.velocity_for(position, error)
            position = np.clip(position, robot.position_min_rad, robot.position_max_rad)
        assert np.linalg.norm(error[:3]) < 2e-3, f"x {x}, y {y}, z {z}, yaw {yaw:.2f}: {error}"
        assert np.linalg.norm(error[3:]) < 0.02, f"x {x}, y {y}, z {z}, yaw {yaw:.2f}: {error}"
