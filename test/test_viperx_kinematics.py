"""urdf/aloha.urdf.xacro against the product of exponentials that Interbotix publishes for vx300s, and MuJoCo against pinocchio."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.rotations import rotvec_to_matrix
from vla_ros.core.urdf import load_urdf
from vla_ros.robots.kinematics import Kinematics, pose_error

EMBODIMENT = load_embodiment("aloha")
ARMS = EMBODIMENT.robots
# interbotix_xs_modules, mr_descriptions, vx300s: screw axes (rotation, translation) in the foot's frame, and ee_gripper_link at zero
SCREWS = (
    (0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, -0.12705, 0.0, 0.0),
    (0.0, 1.0, 0.0, -0.42705, 0.0, 0.05955),
    (1.0, 0.0, 0.0, 0.0, 0.42705, 0.0),
    (0.0, 1.0, 0.0, -0.42705, 0.0, 0.35955),
    (1.0, 0.0, 0.0, 0.0, 0.42705, 0.0),
)
EE_AT_ZERO_M = (0.536494, 0.0, 0.42705)
FOOT = {"left": (0.469, -np.pi / 2), "right": (-0.469, np.pi / 2)}  # y (m), yaw
# our tcp: 24.3 mm farther out than ee_gripper_link; its z is their x, its y is their -y
EE_TO_TCP = np.array([[0.0, 0.0, 1.0, 0.0243], [0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def product_of_exponentials(position: np.ndarray) -> np.ndarray:
    """T_foot_tcp [4, 4] at joint positions [6] rad."""
    pose = np.eye(4)
    for screw, angle in zip(SCREWS, position, strict=True):
        axis, translation = np.array(screw[:3]), np.array(screw[3:])
        cross = np.cross(np.eye(3), axis)
        step = np.eye(4)
        step[:3, :3] = rotvec_to_matrix(axis * angle)
        step[:3, 3] = (np.eye(3) * angle + (1 - np.cos(angle)) * cross + (angle - np.sin(angle)) * cross @ cross) @ translation
        pose = pose @ step
    at_zero = np.eye(4)
    at_zero[:3, 3] = EE_AT_ZERO_M
    return pose @ at_zero @ EE_TO_TCP


def foot(side: str) -> np.ndarray:
    y, yaw = FOOT[side]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_kinematics_is_that_of_interbotix(side):
    robot, kinematics = ARMS[side], Kinematics(ARMS[side])
    for position in np.random.default_rng(0).uniform(robot.position_min_rad, robot.position_max_rad, (50, 6)):
        error = pose_error(foot(side) @ product_of_exponentials(position), kinematics.forward(position))
        assert np.linalg.norm(error[:3]) < 1e-4, "m"
        assert np.linalg.norm(error[3:]) < np.radians(0.01), "rad"


@pytest.mark.parametrize("side", ["left", "right"])
def test_mujoco_and_pinocchio_agree(side):
    scene = mujoco.MjSpec.from_string(load_urdf(EMBODIMENT.urdf))
    scene.body(f"{side}_gripper_link").add_site(name="tcp", pos=[0.1315, 0, 0])
    model = scene.compile()
    data = mujoco.MjData(model)
    robot, kinematics = ARMS[side], Kinematics(ARMS[side])
    address = [model.joint(f"{side}_{name}").qposadr[0] for name in robot.joints]
    for position in np.random.default_rng(1).uniform(robot.position_min_rad, robot.position_max_rad, (20, 6)):
        data.qpos[address] = position
        mujoco.mj_kinematics(model, data)
        pose = kinematics.forward(position)
        np.testing.assert_allclose(pose[:3, 3], data.site("tcp").xpos, atol=1e-6)
        np.testing.assert_allclose(pose[:3, :3], data.site("tcp").xmat.reshape(3, 3) @ EE_TO_TCP[:3, :3], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_home_points_down_in_front_of_the_arm(side):
    pose = np.linalg.inv(foot(side)) @ Kinematics(ARMS[side]).forward(np.array(ARMS[side].home_rad))
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=2e-3)
    assert 0.30 < pose[0, 3] < 0.35
    assert abs(pose[1, 3]) < 1e-6
    assert 0.19 < pose[2, 3] < 0.21


def test_both_grippers_reach_the_middle_of_the_table():
    """Where one hands a block to the other: fingers down, 25 cm and 2 cm above the table."""
    for robot in ARMS.values():
        for position in ((0.0, 0.428, -0.685, 0.0, 1.827, 0.0), (0.0, 0.523, -0.053, 0.0, 1.101, 0.0)):
            pose = Kinematics(robot).forward(np.array(position))
            assert np.linalg.norm(pose[:2, 3]) < 0.01
            assert pose[2, 2] < -0.999
