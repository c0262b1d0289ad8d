"""How close links come: against MuJoCo's distances, the vendor's meshes, and what the gate makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import mujoco
import numpy as np
import pytest
from following_arm import PERIOD_S, FollowingArm

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.collision import approach
from vla_ros.core.embodiment import Embodiment, RobotDescription, config_dir, load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.core.safety import Limiter
from vla_ros.core.types import Action, RobotState
from vla_ros.core.urdf import load_urdf
from vla_ros.nodes.command_gate import CommandGate, State
from vla_ros.robots.clearance import Clearance
from vla_ros.robots.kinematics import Kinematics
from vla_ros.sim.fast import FastLoop

EMBODIMENTS = sorted(path.stem for path in (config_dir() / "embodiments").glob("*.yaml"))
TWO_ARMED = [name for name in EMBODIMENTS if len(load_embodiment(name).robots) == 2]
START_NS = 1_763_700_000_000_000_000
# links with one between them that can touch within the limits of their two joints; the other such pairs are left out
ABLE_TO_TOUCH = {
    "aloha": {("left_upper_arm_link", "left_lower_forearm_link")},
}
FAR_M = 3.0


class Mujoco:
    """The same URDF in MuJoCo, and the distances by its own collision code. Which pairs count is worked out anew from the body tree."""

    def __init__(self, embodiment: Embodiment) -> None:
        spec = mujoco.MjSpec.from_string(load_urdf(embodiment.urdf))
        spec.compiler.fusestatic = False
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        for joint in range(self.model.njnt):  # fingers wide open
            self.data.qpos[self.model.jnt_qposadr[joint]] = self.model.jnt_range[joint, 1]
        self.able = ABLE_TO_TOUCH.get(embodiment.name, set())

    def pose(self, robot: RobotDescription, position: np.ndarray) -> None:
        for joint, value in zip(robot.joints, position, strict=True):
            self.data.qpos[self.model.joint(robot.joint_prefix + joint).qposadr[0]] = value
        mujoco.mj_kinematics(self.model, self.data)

    def room_m(self, robot: RobotDescription) -> float:
        """The least room of one arm with itself and the table."""
        shapes = [(geom, self.place(robot, geom)) for geom in range(self.model.ngeom)]
        shapes = [(geom, place) for geom, place in shapes if place is not None]
        rooms = []
        for (one, (first, _)), (other, (second, _)) in product(shapes, shapes):
            if second - first > 2 or (second - first == 2 and (self.link(one), self.link(other)) in self.able):
                rooms.append(mujoco.mj_geomDistance(self.model, self.data, one, other, FAR_M, None) - robot.clearance_m)
        rooms += [self.lowest_m(geom) - robot.table_z_m - robot.clearance_m for geom, (at, tool) in shapes if at and not tool]
        return min(rooms)

    def room_between_m(self, robot: RobotDescription, other: RobotDescription) -> float:
        rooms = []
        for one, another in product(range(self.model.ngeom), repeat=2):
            here, there = self.place(robot, one), self.place(other, another)
            if not here or not there or not here[0] or not there[0] or (self.is_finger(one) and self.is_finger(another)):
                continue
            margin_m = 0.0 if here[1] and there[1] else robot.clearance_m
            rooms.append(mujoco.mj_geomDistance(self.model, self.data, one, another, FAR_M, None) - margin_m)
        return min(rooms)

    def place(self, robot: RobotDescription, geom: int) -> tuple[int, bool] | None:
        """(number of the joint that moves it from 1 on, 0: stands still; whether it is of the gripper), None for another arm's."""
        names = [robot.joint_prefix + name for name in robot.joints]
        body, above, tool = self.model.geom_bodyid[geom], 0, False
        while body:
            for joint in range(self.model.body_jntadr[body], self.model.body_jntadr[body] + self.model.body_jntnum[body]):
                if self.model.jnt(joint).name in names:
                    number = names.index(self.model.jnt(joint).name) + 1
                    return number, tool or (above > 0 and number == len(names))
                tool = True
            body, above = self.model.body_parentid[body], above + 1
        return None if tool else (0, False)

    def is_finger(self, geom: int) -> bool:
        return "finger" in self.link(geom)

    def link(self, geom: int) -> str:
        return self.model.body(self.model.geom_bodyid[geom]).name

    def lowest_m(self, geom: int) -> float:
        axes, size = self.data.geom_xmat[geom].reshape(3, 3)[2], self.model.geom_size[geom]
        kind = self.model.geom_type[geom]
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            below = np.abs(axes) @ size
        elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
            below = size[1] * abs(axes[2]) + size[0] * np.hypot(axes[0], axes[1])
        else:
            below = size[0]
        return self.data.geom_xpos[geom][2] - below


def random_poses(robot: RobotDescription, count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(robot.position_min_rad, robot.position_max_rad, (count, len(robot.joints)))


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_the_nearest_pair_is_that_of_mujoco(name: str) -> None:
    embodiment = load_embodiment(name)
    robot = next(iter(embodiment.robots.values()))
    truth, clearance = Mujoco(embodiment), Clearance(robot)
    touching = 0
    for position in random_poses(robot, 200 if name == "franka" else 40):
        truth.pose(robot, position)
        expected, gap = truth.room_m(robot), clearance.distance(position)
        if min(expected, gap.room_m) > -robot.clearance_m:
            assert gap.room_m == pytest.approx(expected, abs=1e-4), (position, gap)
        else:  # how deep is told differently by the two, that they overlap is not
            assert max(expected, gap.room_m) <= -robot.clearance_m + 1e-4, (position, gap)
            touching += 1
    assert touching > 0


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_what_is_left_out_cannot_touch(name: str) -> None:
    """The limits of the two joints between such links keep them apart, on other poses than the grid's."""
    embodiment = load_embodiment(name)
    robot, truth = next(iter(embodiment.robots.values())), Mujoco(embodiment)
    shapes = {geom: truth.place(robot, geom) for geom in range(truth.model.ngeom)}
    shapes = {geom: place[0] for geom, place in shapes.items() if place}
    pairs = [(a, b) for a, b in product(shapes, shapes) if shapes[b] - shapes[a] == 2 and (truth.link(a), truth.link(b)) not in truth.able]
    assert pairs
    for position in random_poses(robot, 300):
        truth.pose(robot, position)
        for a, b in pairs:
            assert mujoco.mj_geomDistance(truth.model, truth.data, a, b, 0.01, None) > 0.0, (truth.link(a), truth.link(b), position)


@pytest.mark.parametrize("name", TWO_ARMED)
def test_the_nearest_pair_of_two_arms_is_that_of_mujoco(name: str) -> None:
    embodiment = load_embodiment(name)
    robot, other = embodiment.robots["left"], embodiment.robots["right"]
    truth, both, alone = Mujoco(embodiment), Clearance(robot, other), Clearance(robot)
    nearer = 0
    for position, beside in meetings(robot, other, 40):
        truth.pose(robot, position)
        truth.pose(other, beside)
        own, gap = alone.distance(position), both.distance(position, beside)
        assert both.distance(position).room_m == pytest.approx(own.room_m, abs=1e-5)
        between_m = truth.room_between_m(robot, other)
        nearer += between_m < own.room_m
        if between_m > 0.0:
            assert gap.room_m == pytest.approx(min(own.room_m, between_m), abs=1e-4), (position, beside, gap)
        else:  # how deep is told differently by the two
            assert gap.room_m <= min(own.room_m, 0.0) + 1e-4, (position, beside, gap)
    assert 10 < nearer < 40


def meetings(robot: RobotDescription, other: RobotDescription, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Joint positions of two arms whose hands are about in the same place, between their homes."""
    arms, rng = [(Kinematics(arm), np.array(arm.home_rad)) for arm in (robot, other)], np.random.default_rng(6)
    middle_m = np.mean([kinematics.tcp(home)[:3] for kinematics, home in arms], axis=0)
    for _ in range(count):
        reached = []
        for kinematics, position in arms:
            target = kinematics.tcp(position)
            target[:3] = middle_m + rng.normal(size=3) * 0.08
            for _ in range(15):
                position = kinematics.ahead(position, target)
            reached.append(position)
        yield tuple(reached)


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_home_is_free(name: str) -> None:
    arms = load_embodiment(name).robots
    for arm, robot in arms.items():
        others = [other for key, other in arms.items() if key != arm]
        gap = Clearance(robot, *others).distance(np.array(robot.home_rad), *(np.array(other.home_rad) for other in others))
        assert gap.room_m > 0.01, gap


def test_the_primitives_of_the_franka_cover_the_meshes_of_its_vendor() -> None:
    from vla_ros.sim.render import compile_scene
    from vla_ros.sim.scene import build_simulator

    robot = load_embodiment("franka").robots["arm"]
    vendor = compile_scene(build_simulator(robot.home_rad).scene)
    placed, ours = mujoco.MjData(vendor), Mujoco(load_embodiment("franka"))
    for name, value in zip(robot.joints, robot.home_rad, strict=True):
        placed.qpos[vendor.joint(f"robot0_{name}").qposadr[0]] = value
    mujoco.mj_kinematics(vendor, placed)
    ours.pose(robot, robot.home_rad)
    for number in range(8):
        link, geom = f"fr3_link{number}" if number else "base_link", vendor.geom(f"robot0_fr3_link{number}_collision").id
        mesh = vendor.geom_dataid[geom]
        vertices = vendor.mesh_vert[vendor.mesh_vertadr[mesh] :][: vendor.mesh_vertnum[mesh]]
        points = vertices @ placed.geom_xmat[geom].reshape(3, 3).T + placed.geom_xpos[geom]
        outside = np.min([outside_m(ours, shape, points) for shape in range(ours.model.ngeom) if ours.link(shape) == link], axis=0)
        assert outside.max() < 0.013, (link, outside.max())


def outside_m(world: Mujoco, geom: int, points: np.ndarray) -> np.ndarray:
    """How far points [K, 3] lie outside a box or cylinder."""
    local = (points - world.data.geom_xpos[geom]) @ world.data.geom_xmat[geom].reshape(3, 3)
    size = world.model.geom_size[geom]
    if world.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX:
        return np.linalg.norm(np.maximum(np.abs(local) - size, 0.0), axis=1)
    beyond = np.stack([np.hypot(local[:, 0], local[:, 1]) - size[0], np.abs(local[:, 2]) - size[1]], axis=1)
    return np.linalg.norm(np.maximum(beyond, 0.0), axis=1)


def test_what_is_not_a_number_has_no_distance() -> None:
    robot = load_embodiment("franka").robots["arm"]
    with pytest.raises(DataError, match="not finite") as error:
        Clearance(robot).distance(np.full(7, np.nan))
    assert error.value.reason == "not_finite"


def test_a_joint_that_the_urdf_lacks_is_named() -> None:
    robot = load_embodiment("franka").robots["arm"]
    with pytest.raises(ConfigError, match="no joint 'elbow'"):
        Clearance(replace(robot, joints=("elbow", *robot.joints[1:])))


# What the gate makes of it.

ROBOT = load_embodiment("franka").robots["arm"]
KINEMATICS = Kinematics(ROBOT)
POSITIONS = tuple(f"{joint}.position" for joint in ROBOT.joints)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)


class Desk:
    """A gate in front of a robot that goes where it is told, from `position` [7] rad on."""

    def __init__(self, position: np.ndarray) -> None:
        self.clearance = Clearance(ROBOT)
        limiter = Limiter(ROBOT, KINEMATICS.tcp, clearance=self.clearance.distance, predict=KINEMATICS.ahead)
        self.robot, self.now_ns = FollowingArm(ROBOT), START_NS
        self.robot.position = np.array(position)
        self.gate = CommandGate(self.robot, limiter, 0.15, lambda *_: None)
        self.wait()
        self.gate.select("policy")

    def wait(self) -> None:
        self.now_ns += round(PERIOD_S * 1e9)
        self.robot.now_ns = self.now_ns
        self.gate.update(self.now_ns)

    def send(self, channels: tuple[str, ...], data: np.ndarray) -> Action | None:
        self.wait()
        return self.gate.command(lambda: Action(channels, data, self.now_ns, "policy"), "policy", self.now_ns, self.now_ns)

    @property
    def room_m(self) -> float:
        return self.clearance.distance(self.robot.position).room_m


# the hand points ahead, 4 cm over the table; fr3_link5 is 28 mm above it, and joint 2 or a lower TCP brings it down
LOW = np.array([0.0, 0.876, 0.0, -2.385, 0.0, 4.282, 0.785])
MODES = ("joint_position", "joint_velocity", "tcp_pose")


def command(mode: str, position: np.ndarray, down: float) -> tuple[tuple[str, ...], np.ndarray]:
    """A small motion down (1) or up (-1) from `position` [7] rad."""
    shoulder = np.eye(7)[1] * down
    if mode == "joint_position":
        return POSITIONS, position + 0.01 * shoulder
    if mode == "joint_velocity":
        return VELOCITIES, 0.2 * shoulder
    return TCP_POSE, KINEMATICS.tcp(position) - 0.005 * down * np.eye(6)[2]


@pytest.mark.parametrize("mode", MODES)
def test_a_command_that_comes_too_close_is_rejected_and_the_way_back_is_open(mode: str) -> None:
    desk = Desk(LOW)
    for _ in range(30):
        if desk.send(*command(mode, desk.robot.position, 1.0)) is None:
            break
    assert desk.gate.shown[:3] == (State.HOLD, "policy", "collision")
    assert desk.gate.rejected == {"collision": 1}
    assert "fr3_link5" in desk.gate.detail and "table" in desk.gate.detail and "margin 0.01 m" in desk.gate.detail
    assert 0.0 <= desk.room_m < 0.015, "it stood before the margin, close to it"
    assert desk.robot.told[-1] == "stop"
    assert desk.send(*command(mode, desk.robot.position, -1.0)) is None, "rejected commands are not resumed by themselves"
    desk.gate.select("policy")
    room_m = desk.room_m
    assert desk.send(*command(mode, desk.robot.position, -1.0)) is not None
    assert desk.room_m > room_m


@pytest.mark.parametrize("mode", MODES)
def test_from_too_close_only_the_way_out_is_open(mode: str) -> None:
    desk = Desk(LOW + 0.06 * np.eye(7)[1])  # pushed there by hand
    assert -0.005 < desk.room_m < -0.001
    assert desk.send(*command(mode, desk.robot.position, 1.0)) is None
    assert desk.gate.reason == "collision"
    desk.gate.select("policy")
    assert desk.send(*command(mode, desk.robot.position, -1.0)) is not None


def test_a_long_step_is_looked_at_on_its_way() -> None:
    """Free here and free there, and the wrist would sweep over the table between."""
    start = np.array([2.36, 1.21, -0.97, -2.52, -1.29, 1.2, -0.61])
    goal = np.array([1.88, 0.73, -0.49, -2.04, -1.77, 1.68, -1.09])
    clearance = Clearance(ROBOT)
    assert clearance.distance(start).room_m > 0.01 and clearance.distance(goal).room_m > 0.01
    gap = approach(clearance.distance, start, goal)
    assert gap is not None and {gap.first, gap.second} == {"fr3_link6", "table"}
    assert approach(clearance.distance, start, start + 0.1 * (goal - start)) is None


def test_the_tabletop_work_is_never_in_the_way() -> None:
    """One episode of each task: the expert's TCP targets pass the limiter with clearance, and the arm never comes close to anything."""
    loop, clearance, stamp_ns = FastLoop("franka", ()), Clearance(ROBOT), START_NS
    least_m = np.inf
    for kind in ("place", "stack"):
        for seed, instruction in enumerate(loop.instructions(kind)):
            limiter = Limiter(ROBOT, KINEMATICS.tcp, period_s=0.1, clearance=clearance.distance, predict=KINEMATICS.ahead)
            loop.reset(seed, instruction, disturb_start=True)
            for _ in range(200):
                stamp_ns += 100_000_000
                view = loop.look(render=False)
                row = loop.expert(view, 1)[0][0]
                state = RobotState(stamp_ns, ROBOT.joints, view.joints_rad["arm"], np.zeros(7), np.zeros(7), view.state[6])
                limiter.check(Action(TCP_POSE, row[:6], stamp_ns, "expert"), state, stamp_ns)
                least_m = min(least_m, clearance.distance(view.joints_rad["arm"]).room_m)
                loop.step(row)
                if loop.outcome().success:
                    break
            assert loop.outcome().success, instruction
            assert not limiter.rejected
    assert least_m > 0.02
