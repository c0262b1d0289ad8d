"""urdf/kinova.urdf.xacro and the kinematics on it, against the DH table of Kinova's user guide, and as MuJoCo reads it."""

from __future__ import annotations

from math import pi

import mujoco
import numpy as np
import pinocchio
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.urdf import load_urdf
from vla_ros.robots.kinematics import Kinematics, pose_error

ROBOT = load_embodiment("kinova").robots["arm"]
LOW, HIGH = np.array(ROBOT.position_min_rad), np.array(ROBOT.position_max_rad)
HOME = np.array(ROBOT.home_rad)
# Gen3 user guide, classical DH table of the 7 DoF spherical wrist: alpha (rad), d (m), theta - q (rad); a = 0 in every row.
# Row 0 turns the base frame over and has no joint. The lengths are the sums of the link lengths of its dimension drawing.
DH = (
    (pi, 0.0, 0.0),
    (pi / 2, -(0.1564 + 0.1284), 0.0),
    (pi / 2, -(0.0054 + 0.0064), pi),
    (pi / 2, -(0.2104 + 0.2104), pi),
    (pi / 2, -(0.0064 + 0.0064), pi),
    (pi / 2, -(0.2084 + 0.1059), pi),
    (pi / 2, 0.0, pi),
    (pi, -(0.1059 + 0.0615), pi),
)
# from the interface frame of that table to tcp: 2F-85 turned a quarter, 0.12 m ahead
INTERFACE_TO_TCP = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0.12], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def kinematics():
    return Kinematics(ROBOT)


def guide(position_rad: np.ndarray) -> np.ndarray:
    """T_base_tcp [4, 4] by the user guide's table."""
    pose = np.eye(4)
    for (alpha, d, offset), q in zip(DH, (0.0, *position_rad), strict=True):
        ct, st, ca, sa = np.cos(q + offset), np.sin(q + offset), np.cos(alpha), np.sin(alpha)
        pose = pose @ np.array([[ct, -st * ca, st * sa, 0.0], [st, ct * ca, -ct * sa, 0.0], [0.0, sa, ca, d], [0, 0, 0, 1]])
    return pose @ INTERFACE_TO_TCP


def test_forward_kinematics_is_that_of_the_user_guide(kinematics):
    for position in [np.zeros(7), HOME, *np.random.default_rng(0).uniform(LOW, HIGH, (200, 7))]:
        error = pose_error(guide(position), kinematics.forward(position))
        # the guide rounds its lengths to 0.1 mm and leaves out the 0.35 mm between the axes 5 and 7
        assert np.linalg.norm(error[:3]) < 1e-3, f"{np.linalg.norm(error[:3]) * 1e3:.2f} mm at {position}"
        assert np.linalg.norm(error[3:]) < np.deg2rad(0.1)


def test_mujoco_and_pinocchio_read_the_same_arm(kinematics):
    spec = mujoco.MjSpec.from_string(load_urdf(ROBOT.urdf))
    spec.compiler.fusestatic = False
    model = spec.compile()
    data = mujoco.MjData(model)
    for position in np.random.default_rng(1).uniform(LOW, HIGH, (50, 7)):
        for name, value in zip(ROBOT.joints, position, strict=True):
            data.joint(name).qpos = value
        mujoco.mj_kinematics(model, data)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = data.body("tcp").xmat.reshape(3, 3), data.body("tcp").xpos
        np.testing.assert_allclose(kinematics.forward(position), pose, atol=1e-9)


def test_home_points_down_in_front_of_the_base(kinematics):
    pose = kinematics.forward(HOME)
    np.testing.assert_allclose(pose[:3, 3], [0.45, 0.0, 0.25], atol=1e-3)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-3)


def test_limits_and_masses():
    model = pinocchio.buildModelFromXML(load_urdf(ROBOT.urdf))
    index = [model.joints[model.getJointId(name)].idx_q for name in ROBOT.joints]
    assert (model.lowerPositionLimit[index] <= LOW).all() and (model.upperPositionLimit[index] >= HIGH).all()
    assert (model.velocityLimit[index] >= ROBOT.velocity_max_rad_s).all()
    assert model.upperPositionLimit[model.joints[model.getJointId("gripper")].idx_q] == ROBOT.gripper.width_max_m
    # data sheets: the arm weighs 8.2 kg with its cables, the 2F-85 0.925 kg
    assert sum(inertia.mass for inertia in model.inertias) == pytest.approx(8.2 + 0.925, abs=0.2)


def test_fingers_meet_at_the_tcp_and_reach_past_it(kinematics):
    spec = mujoco.MjSpec.from_string(load_urdf(ROBOT.urdf))
    spec.compiler.fusestatic = False
    model = spec.compile()
    data = mujoco.MjData(model)
    for width in (0.0, 0.085):
        for name, sign in (("left", 1.0), ("right", -1.0)):
            data.joint(f"finger_{name}_joint").qpos = width / 2
            mujoco.mj_kinematics(model, data)
            geom = next(i for i in range(model.ngeom) if model.geom_bodyid[i] == model.body(f"finger_{name}").id)
            centre = data.body("tcp").xmat.reshape(3, 3).T @ (data.geom_xpos[geom] - data.body("tcp").xpos)
            half = model.geom_size[geom]
            assert sign * centre[1] - half[1] == pytest.approx(width / 2, abs=1e-6)
            assert centre[2] + half[2] == pytest.approx(0.005, abs=1e-6)
