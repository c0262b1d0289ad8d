"""Each robot's table without its protocol: the expert solves every kind of task, links and cameras are where they should be."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError
from vla_ros.core.rotations import angle_between
from vla_ros.policies.layout import layout_for
from vla_ros.sim.arms import TIMESTEP_S, arm_scene
from vla_ros.sim.expert import BEFORE_GRASP, DT_S, HELD, PLACED
from vla_ros.sim.fast import THINGS, FastLoop
from vla_ros.sim.layout import LAYOUTS, arm_names, layout_of
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.render import compile_scene
from vla_ros.sim.servo_engine import ServoPlant
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import task_of_seed, tasks
from vla_ros.training.demonstrations import OBJECTS

ARMS = [name for name in LAYOUTS if name != "franka"]
ROBOTS = {name: load_embodiment(name) for name in LAYOUTS}


class Table:
    """A table under the rig's plants, at rest."""

    def __init__(self, name: str) -> None:
        embodiment, self.layout = ROBOTS[name], layout_of(name)
        names = arm_names(embodiment)
        self.model = compile_scene(arm_scene(embodiment))
        self.data = mujoco.MjData(self.model)
        self.state = SceneState(self.model, names)
        robots = embodiment.robots
        self.plants = {arm: ServoPlant(robots[arm], names[arm], self.model, self.data) for arm in robots}
        self.home = {arm: np.array(robot.home_rad) for arm, robot in robots.items()}
        self.open = {arm: reach.width_max_m for arm, reach in self.layout.arms.items()}

    def place(self, seed: int) -> None:
        task = task_of_seed(seed, self.layout.drawn)
        self.state.write(self.data, draw_placement(seed, self.layout, task), self.home, self.open)
        mujoco.mj_forward(self.model, self.data)
        for arm, plant in self.plants.items():
            plant.rest(self.open[arm])


@pytest.fixture(scope="module", params=ARMS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def table(name) -> Table:
    return Table(name)


@pytest.fixture(scope="module")
def loop(name):
    loop = FastLoop(name, layout_of(name).cameras, 80, 60)
    yield loop
    loop.close()


def kinds(name: str) -> tuple[str, str]:
    return ("place", "bimanual" if layout_of(name).bimanual else "stack")


def run(loop: FastLoop, steps: int = 120, horizon: int = 1) -> tuple[np.ndarray, list[int]]:
    """Follows the expert until success; returns the states [T, S] that were passed, and the stages."""
    states, stages = [], []
    for _ in range(steps):
        view = loop.look(render=False)
        targets, stage = loop.expert(view, horizon)
        states.append(view.state)
        stages.append(stage)
        loop.step(targets[0])
        if loop.outcome().success:
            break
    return np.array(states), stages


def test_expert_solves_every_kind_of_task(loop, name):
    for kind in kinds(name):
        instructions = loop.instructions(kind)
        assert len(instructions) == (len(tasks(kind)))
        for seed in range(6):
            loop.reset(seed, instructions[seed % len(instructions)], disturb_start=seed % 2 == 1)
            _, stages = run(loop)
            outcome = loop.outcome()
            assert outcome.success and not outcome.wrong_object, f"seed {seed}, {instructions[seed % len(instructions)]}: {outcome.detail}"
            assert {BEFORE_GRASP, HELD} <= set(stages) <= {BEFORE_GRASP, HELD, PLACED}


def test_numbers_are_those_of_the_policies_layout(loop, name):
    layout = layout_for(ROBOTS[name], ROBOTS[name].cameras)
    loop.reset(3, loop.instructions("place")[3])
    view = loop.look(render=False)
    targets, _ = loop.expert(view, 4)
    assert view.state.shape == (len(layout.state),) and targets.shape == (4, len(layout.channels))
    for arm, (part, description) in zip(layout.arms, ROBOTS[name].robots.items(), strict=True):
        hand = view.world.arms.get(part) or view.world.hands[0]
        assert view.state[arm.gripper] == pytest.approx(description.gripper.width_max_m, abs=1e-6)
        assert set(targets[:, arm.gripper]) <= {0.0, 1.0}
        if arm.pose:
            assert view.state[arm.columns][:3] == pytest.approx(hand.position)
            assert angle_between(view.state[arm.columns][3:], np.array([np.pi, 0.0, 0.0])) < 0.1
        else:
            assert view.state[arm.columns] == pytest.approx(description.home_rad)
        assert np.abs(targets[0, arm.columns] - view.state[arm.columns]).max() < 0.3


def test_joints_go_where_they_are_told_and_no_faster_than_they_may(loop, name):
    """Half of the actions are what an untrained policy might say: far away, and each time somewhere else."""
    rng = np.random.default_rng(0)
    loop.reset(0, loop.instructions("place")[0], disturb_start=True)
    limit = np.concatenate([robot.velocity_max_rad_s for robot in ROBOTS[name].robots.values()])
    low = np.concatenate([robot.position_min_rad for robot in ROBOTS[name].robots.values()])
    high = np.concatenate([robot.position_max_rad for robot in ROBOTS[name].robots.values()])
    before = np.concatenate(list(loop.look(render=False).joints_rad.values()))
    fastest = np.zeros(len(limit))
    for step in range(60):
        view = loop.look(render=False)
        action = loop.expert(view, 1)[0][0]
        loop.step(action + rng.normal(size=len(action)) * 0.2 * (step % 20 >= 10))
        assert all(np.all(np.abs(loop._data.ctrl[arm.servos]) <= arm.speed) for arm in loop._arms.values())
        now = np.concatenate(list(loop.look(render=False).joints_rad.values()))
        fastest = np.maximum(fastest, np.abs(now - before) / DT_S)
        assert np.all(now > low - 0.02) and np.all(now < high + 0.02)
        before = now
    assert np.all(fastest < limit * 1.25), fastest / limit  # a servo that was behind catches up
    assert fastest.max() > 0.5


def test_joint_targets_are_met_and_never_jump():
    loop = FastLoop("aloha", [])
    speed = np.concatenate([(*robot.velocity_max_rad_s, np.inf) for robot in ROBOTS["aloha"].robots.values()])
    arms = np.isfinite(speed)
    loop.reset(1, loop.instructions("bimanual")[1])
    for _ in range(25):
        view = loop.look(render=False)
        targets, _ = loop.expert(view, 16)
        assert np.all(np.abs(np.diff(targets, axis=0, prepend=view.state[None]))[:, arms] <= (speed * DT_S)[arms] + 1e-9)
        loop.step(targets[0])
        assert np.abs(loop.look(render=False).state - targets[0])[arms].max() < 0.06


def test_the_same_seed_gives_the_same_run_and_a_disturbed_start_another(loop, name):
    instruction = loop.instructions(kinds(name)[1])[0]
    passed = []
    for disturb in (True, True, False):
        loop.reset(4, instruction, disturb)
        passed.append(run(loop, 15)[0])
    assert np.array_equal(passed[0], passed[1])
    assert 0.02 < np.abs(passed[0][0] - passed[2][0]).max() < 0.5
    assert np.array_equal(loop.look(render=False).objects, loop.look(render=False).objects, equal_nan=True)


def test_objects_and_roles_say_what_is_there(loop, name):
    assert len(OBJECTS) == len(THINGS) and all(
        thing.split()[0] == first or first in thing for first, thing in zip(OBJECTS, THINGS, strict=True)
    )
    loop.reset(5, "pick up the blue block and put it in the bowl")
    view = loop.look(render=False)
    assert loop.roles().tolist() == [2, 4]
    assert np.isfinite(view.objects[:5]).all() and np.isnan(view.objects[5:]).all()
    assert np.array_equal(view.objects[4], view.world.position["bowl"])
    loop.shift("bowl", 0.02, 0.0)
    assert loop.look(render=False).objects[4] - view.objects[4] == pytest.approx([0.02, 0.0, 0.0])
    with pytest.raises(ConfigError, match="takes a drawer"):
        loop.reset(0, "open the drawer, put the red block in it and close it")
    if not layout_of(name).bimanual:
        with pytest.raises(ConfigError, match="takes two arms"):
            loop.reset(0, "lift the tray with both hands")
        return
    loop.reset(0, "lift the tray with both hands")
    assert loop.roles().tolist() == [6, 6]
    assert np.isfinite(loop.look(render=False).objects).all(axis=1).tolist() == [False] * 6 + [True, False]


def test_servos_hold_the_arm_against_its_weight(table):
    table.place(1)
    for _ in range(500):
        mujoco.mj_step(table.model, table.data)
    for arm, home in table.home.items():
        assert table.data.qpos[table.state.arm[arm]] == pytest.approx(home, abs=2e-3)
        assert table.state.gripper_width_m(table.data, arm) == pytest.approx(table.open[arm], abs=1e-3)


def test_what_is_not_needed_waits_at_rest(table):
    table.place(0)
    before = table.state.world(table.data).position
    for _ in range(300):
        mujoco.mj_step(table.model, table.data)
    mujoco.mj_kinematics(table.model, table.data)
    after = table.state.world(table.data).position
    for name, spot in before.items():
        assert after[name] == pytest.approx(spot, abs=2e-3), name


def test_power_off_lets_the_arm_be_moved_and_on_holds_it_there(table):
    table.place(1)
    plant = next(iter(table.plants.values()))
    plant.power(False)
    plant.drive(plant.measure().position + 1.0)  # no effect while the power is off
    plant.apply(TIMESTEP_S)
    assert plant.commanded_rad_s == pytest.approx(0.0, abs=1e-6)
    plant.power(True)
    plant.apply(TIMESTEP_S)
    assert plant.commanded_rad_s == pytest.approx(0.0, abs=1e-6)


def test_every_camera_shows_the_table_at_twice_the_size_and_the_front_one_the_blocks(loop, name):
    assert set(layout_of(name).cameras) == set(ROBOTS[name].cameras)
    loop.reset(1, loop.instructions("place")[1])
    images = loop.look().images
    assert set(images) == set(ROBOTS[name].cameras)
    assert {(image.shape, image.dtype) for image in images.values()} == {((120, 160, 3), np.dtype(np.uint8))}
    front = images["front"].astype(int)
    for channel in range(3):
        rest = [i for i in range(3) if i != channel]
        assert np.all(front[..., [channel]] > front[..., rest] * 1.5 + 20, axis=-1).sum() > 10


def test_a_robot_without_a_table_is_named():
    with pytest.raises(ConfigError, match="did you mean 'kinova'"):
        layout_of("kinva")
    with pytest.raises(ConfigError, match="did you mean 'kinova'"):
        FastLoop("kinva", ["front"])


def test_an_unknown_kind_of_task_is_named(loop):
    with pytest.raises(ConfigError, match="did you mean 'stack'"):
        loop.instructions("stak")
