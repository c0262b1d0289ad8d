"""Every URDF of config/embodiments: pinocchio and MuJoCo read the same robot in it, and it keeps the conventions of urdf/."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import mujoco
import numpy as np
import pinocchio
import pytest

from vla_ros.core.embodiment import Embodiment, RobotDescription, config_dir, load_embodiment
from vla_ros.core.types import RobotState
from vla_ros.core.urdf import load_urdf
from vla_ros.nodes.merged_state import MergedState
from vla_ros.robots.kinematics import Kinematics

EMBODIMENTS = {path.stem: load_embodiment(path.stem) for path in sorted((config_dir() / "embodiments").glob("*.yaml"))}
ARMS = {f"{name}-{arm}": (embodiment, robot) for name, embodiment in EMBODIMENTS.items() for arm, robot in embodiment.robots.items()}
each_arm = pytest.mark.parametrize(("embodiment", "robot"), ARMS.values(), ids=ARMS)
each_robot = pytest.mark.parametrize("embodiment", EMBODIMENTS.values(), ids=EMBODIMENTS)


def in_mujoco(urdf: str) -> mujoco.MjModel:
    spec = mujoco.MjSpec.from_string(load_urdf(urdf))
    spec.compiler.fusestatic = False
    return spec.compile()


def in_pinocchio(urdf: str) -> pinocchio.Model:
    return pinocchio.buildModelFromXML(load_urdf(urdf))


def pose_of(data: mujoco.MjData, body: str) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = data.body(body).xmat.reshape(3, 3), data.body(body).xpos
    return pose


def random_poses(robot: RobotDescription, count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(robot.position_min_rad, robot.position_max_rad, (count, len(robot.joints)))


def place(model: mujoco.MjModel, data: mujoco.MjData, robot: RobotDescription, position: np.ndarray, width_m: float = 0.0) -> None:
    for joint, value in zip(robot.joints, position, strict=True):
        data.qpos[model.joint(robot.joint_prefix + joint).qposadr[0]] = value
    for joint, share in (("gripper", 1.0), ("finger_left_joint", 0.5), ("finger_right_joint", 0.5)):
        data.qpos[model.joint(robot.joint_prefix + joint).qposadr[0]] = share * width_m
    mujoco.mj_kinematics(model, data)


@each_arm
def test_forward_kinematics_is_the_same_in_both(embodiment: Embodiment, robot: RobotDescription) -> None:
    model, kinematics = in_mujoco(robot.urdf), Kinematics(robot)
    data = mujoco.MjData(model)
    for position in random_poses(robot, 20):
        place(model, data, robot, position)
        expected = np.linalg.inv(pose_of(data, robot.base_frame)) @ pose_of(data, robot.tcp_frame)
        np.testing.assert_allclose(kinematics.forward(position), expected, atol=1e-4)


@each_robot
def test_every_link_that_moves_has_mass_inertia_and_a_shape(embodiment: Embodiment) -> None:
    model, root = in_pinocchio(embodiment.urdf), ET.fromstring(load_urdf(embodiment.urdf))
    for joint in range(1, model.njoints):
        inertia, name = model.inertias[joint], model.names[joint]
        assert inertia.mass > 0.0, name
        moments = np.linalg.eigvalsh(inertia.inertia)
        assert moments[0] > 0.0, name
        assert moments[0] + moments[1] >= moments[2] * (1 - 1e-6), f"{name}: no body has such moments {moments}"
    shaped = {link.get("name") for link in root.findall("link") if link.find("collision") is not None}
    moved = {joint.find("child").get("link") for joint in root.findall("joint") if joint.get("type") != "fixed"}
    openings = {f"{robot.joint_prefix}gripper_opening" for robot in embodiment.robots.values()}
    assert moved - shaped == openings
    for link in root.iter("link"):
        assert link.find("collision") is None or link.find("visual") is not None, link.get("name")
    assert not list(root.iter("mesh")), "primitives only"


@each_arm
def test_limits_are_those_of_the_embodiment(embodiment: Embodiment, robot: RobotDescription) -> None:
    """What the embodiment allows lies inside the URDF's limits, by little where it has to do with the position."""
    model = in_pinocchio(robot.urdf)
    index = [model.joints[model.getJointId(robot.joint_prefix + joint)].idx_q for joint in robot.joints]
    for allowed, possible, sign in (
        (robot.position_min_rad, model.lowerPositionLimit[index], 1.0),
        (robot.position_max_rad, model.upperPositionLimit[index], -1.0),
    ):
        spare = sign * (np.array(allowed) - possible)
        assert spare.min() > -1e-4, dict(zip(robot.joints, spare, strict=True))
    assert (model.velocityLimit[index] >= np.array(robot.velocity_max_rad_s) - 1e-6).all()
    if robot.gripper is not None:
        gripper = model.joints[model.getJointId(f"{robot.joint_prefix}gripper")].idx_q
        assert model.lowerPositionLimit[gripper] == pytest.approx(robot.gripper.width_min_m)
        assert model.upperPositionLimit[gripper] == pytest.approx(robot.gripper.width_max_m)


@each_arm
def test_the_opening_is_what_is_free_between_the_fingers(embodiment: Embodiment, robot: RobotDescription) -> None:
    root, prefix = ET.fromstring(load_urdf(robot.urdf)), robot.joint_prefix
    for side in ("left", "right"):
        mimic = root.find(f"joint[@name='{prefix}finger_{side}_joint']/mimic")
        assert mimic.get("joint") == f"{prefix}gripper" and float(mimic.get("multiplier")) == 0.5 and not float(mimic.get("offset", 0))
    model = in_mujoco(robot.urdf)
    data = mujoco.MjData(model)
    for width_m in (0.0, 0.02, robot.gripper.width_max_m):
        place(model, data, robot, robot.home_rad, width_m)
        tcp = pose_of(data, robot.tcp_frame)
        inner, tips = {}, {}
        for side, sign in (("left", 1.0), ("right", -1.0)):
            corners = np.concatenate([box_corners(model, data, geom) for geom in shapes_of(model, f"{prefix}finger_{side}")])
            local = (corners - tcp[:3, 3]) @ tcp[:3, :3]
            inner[side], tips[side] = (sign * local[:, 1]).min(), local[:, 2].max()
            assert inner[side] == pytest.approx(width_m / 2, abs=1e-4), f"{side} finger at {width_m} m"
            assert 0.002 < tips[side] < 0.015, "the tips reach a little beyond the tcp"
            assert local[:, 0].min() < 0.0 < local[:, 0].max(), "the tcp lies between the pads"


def shapes_of(model: mujoco.MjModel, body: str) -> list[int]:
    return [geom for geom in range(model.ngeom) if model.body(model.geom_bodyid[geom]).name == body]


def box_corners(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> np.ndarray:
    assert model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return data.geom_xpos[geom] + (signs * model.geom_size[geom]) @ data.geom_xmat[geom].reshape(3, 3).T


@each_arm
def test_at_home_the_gripper_points_down_inside_the_workspace(embodiment: Embodiment, robot: RobotDescription) -> None:
    pose = Kinematics(robot).forward(np.array(robot.home_rad))
    assert np.degrees(np.arccos(np.clip(-pose[2, 2], -1, 1))) < 2.0, "z of the tcp, from straight down, in degrees"
    assert (pose[:3, 3] > robot.workspace_min_m).all() and (pose[:3, 3] < robot.workspace_max_m).all()
    assert abs(pose[2, 1]) < 0.05, "the fingers close horizontally"


@pytest.mark.parametrize("name", [name for name, embodiment in EMBODIMENTS.items() if len(embodiment.robots) == 1])
def test_of_a_single_arm_the_gripper_pointing_down_is_half_a_turn_about_x(name: str) -> None:
    pose = Kinematics(EMBODIMENTS[name].robots["arm"]).forward(np.array(EMBODIMENTS[name].robots["arm"].home_rad))
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=0.04)


@each_robot
def test_the_merged_joint_states_move_every_joint_of_the_urdf(embodiment: Embodiment) -> None:
    """What robot_state_publisher needs: each name once, none missing but those that mimic another."""
    merged = MergedState(embodiment, 1.0)
    for name, robot in embodiment.robots.items():
        home = np.array(robot.home_rad)
        merged.add(name, RobotState(1, robot.joints, home, 0 * home, 0 * home, 0.01))
    root = ET.fromstring(load_urdf(embodiment.urdf))
    moving = [joint.get("name") for joint in root.findall("joint") if joint.get("type") != "fixed" and joint.find("mimic") is None]
    assert sorted(merged.joints().joint_names) == sorted(moving)
