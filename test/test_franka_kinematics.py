"""urdf/franka.urdf.xacro and the kinematics on it, against franky-sim's MuJoCo model."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pinocchio
import pytest
from franky_sim.mujoco_simulator import FrankaMujocoRobot, MujocoSimulator

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError
from vla_ros.core.urdf import load_urdf
from vla_ros.robots.kinematics import Kinematics, displaced, pose_error, pose_matrix, pose_vector

ROBOT = load_embodiment("franka").robots["arm"]
LOW, HIGH = np.array(ROBOT.position_min_rad), np.array(ROBOT.position_max_rad)
HOME = np.array(ROBOT.home_rad)


@pytest.fixture(scope="module")
def kinematics():
    return Kinematics(ROBOT)


def test_forward_kinematics_is_that_of_the_mujoco_model(kinematics):
    simulator = MujocoSimulator(enable_visualization=False)
    simulator.add_robot()
    simulator.init()
    simulator.start()
    model = simulator.model
    data = mujoco.MjData(model)
    hand_to_tcp = np.eye(4)
    hand_to_tcp[2, 3] = 0.1034
    for position in np.random.default_rng(0).uniform(LOW, HIGH, (50, 7)):
        data.qpos[[model.joint(f"robot0_{name}").qposadr[0] for name in ROBOT.joints]] = position
        mujoco.mj_kinematics(model, data)
        hand = np.eye(4)
        hand[:3, :3], hand[:3, 3] = data.body("robot0_hand").xmat.reshape(3, 3), data.body("robot0_hand").xpos
        np.testing.assert_allclose(kinematics.forward(position), hand @ hand_to_tcp, atol=1e-4)


def test_forward_kinematics_is_that_of_libfranka(kinematics):
    """`kinematics` of franky-sim's robot is what it sends as O_T_EE."""
    robot = FrankaMujocoRobot()
    for position in np.random.default_rng(1).uniform(LOW, HIGH, (20, 7)):
        np.testing.assert_allclose(kinematics.forward(position), robot.kinematics(position).homogeneous, atol=1e-4)


def test_limits_of_the_urdf_are_those_of_the_embodiment():
    model = pinocchio.buildModelFromXML(load_urdf(ROBOT.urdf))
    index = [model.joints[model.getJointId(name)].idx_q for name in ROBOT.joints]
    np.testing.assert_allclose(model.lowerPositionLimit[index], LOW)
    np.testing.assert_allclose(model.upperPositionLimit[index], HIGH)
    assert (model.velocityLimit[index] >= ROBOT.velocity_max_rad_s).all()


def test_masses_are_those_of_the_mujoco_model():
    """Every link of the URDF, loaded by MuJoCo, against franky-sim's."""
    ours = mujoco.MjSpec.from_string(load_urdf(ROBOT.urdf)).compile()
    simulator = MujocoSimulator(enable_visualization=False)
    simulator.add_robot()
    simulator.init()
    simulator.start()
    for link in range(1, 7):  # the hand is part of link 7 here: MuJoCo merges what is fixed
        mine, theirs = ours.body(f"fr3_link{link}"), simulator.model.body(f"robot0_fr3_link{link}")
        np.testing.assert_allclose(mine.mass, theirs.mass, rtol=1e-3)
        np.testing.assert_allclose(mine.ipos, theirs.ipos, atol=1e-4)
        np.testing.assert_allclose(np.sort(mine.inertia), np.sort(theirs.inertia), rtol=1e-2)


def test_jacobian_is_the_derivative_of_the_pose(kinematics):
    position, step = HOME + 0.1, 1e-6
    jacobian = kinematics.jacobian(position)
    for i in range(7):
        moved = position + step * np.eye(7)[i]
        numeric = pose_error(kinematics.forward(moved), kinematics.forward(position)) / step
        np.testing.assert_allclose(jacobian[:, i], numeric, atol=1e-5)


def test_differential_ik_follows_a_path(kinematics):
    """A circle with a turn of the hand, integrated at 50 Hz from home."""
    position, start, dt_s = HOME.copy(), kinematics.forward(HOME), 0.02
    errors = []
    for step in range(250):
        phase = 2 * np.pi * step * dt_s / 5.0
        offset = np.array([0.1 * (1 - np.cos(phase)), 0.15 * np.sin(phase), 0.0, 0.0, 0.0, 0.5 * np.sin(phase)])
        target = displaced(start, offset)
        error = pose_error(target, kinematics.forward(position))
        position = position + dt_s * kinematics.limit(position, kinematics.velocity_for(position, 20 * error))
        errors.append(np.linalg.norm(error[:3]))
    assert max(errors) < 0.015
    assert (position > LOW).all()
    assert (position < HIGH).all()


def test_the_null_space_pulls_home_without_moving_the_hand(kinematics):
    position = HOME + np.array([0.3, 0, -0.3, 0, 0, 0, 0])
    velocity = kinematics.velocity_for(position, np.zeros(6))
    assert (HOME - position) @ velocity > 0
    assert np.abs(kinematics.jacobian(position) @ velocity).max() < 0.02


def test_too_fast_is_slowed_down_in_its_direction(kinematics):
    velocity = kinematics.limit(HOME, np.array([8.0, 4.0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(velocity, [2.0, 1.0, 0, 0, 0, 0, 0])


def test_speed_fades_towards_a_joint_limit_and_not_away_from_it(kinematics):
    position = HOME.copy()
    position[0] = HIGH[0] - 0.05
    assert kinematics.limit(position, np.eye(7)[0])[0] == pytest.approx(0.5)
    assert kinematics.limit(position, -np.eye(7)[0])[0] == pytest.approx(-1.0)
    position[0] = HIGH[0] + 0.01
    assert kinematics.limit(position, np.eye(7)[0])[0] == 0.0


def test_poses_survive_a_half_turn():
    down = np.array([0.5, 0.0, 0.3, np.pi - 1e-4, 0.0, 0.0])
    other = np.array([0.5, 0.0, 0.3, -np.pi + 1e-4, 0.0, 0.0])
    assert np.abs(pose_error(pose_matrix(down), pose_matrix(other))).max() < 3e-4
    np.testing.assert_allclose(pose_matrix(pose_vector(pose_matrix(down))), pose_matrix(down), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": (*ROBOT.joints[:6], "fr3_joint8")}, "did you mean 'fr3_joint"),
        ({"tcp_frame": "tpc"}, "did you mean 'tcp'"),
        ({"urdf": "/nowhere.urdf"}, "no such URDF"),
    ],
)
def test_what_the_urdf_lacks_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        Kinematics(replace(ROBOT, **change))
