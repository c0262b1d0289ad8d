"""Each robot's table without its protocol: the expert solves every kind of task, links and cameras are where they should be."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla_ros.core.embodiment import Embodiment, load_embodiment
from vla_ros.core.errors import ConfigError
from vla_ros.sim.arms import TIMESTEP_S, arm_scene
from vla_ros.sim.bimanual import plan_pair
from vla_ros.sim.expert import plan_chunk
from vla_ros.sim.ik import SceneIk
from vla_ros.sim.judge import Judge, Outcome
from vla_ros.sim.layout import LAYOUTS, arm_names, layout_of
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.render import Renderer, compile_scene
from vla_ros.sim.servo_engine import ServoPlant
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import bimanual_tasks, task_of_seed

ARMS = [name for name in LAYOUTS if name != "franka"]
CONTROL_STEPS, ROW_STEPS = 10, 50


class Table:
    """A table whose arms go exactly where the expert says."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment, self.layout = embodiment, layout_of(embodiment.name)
        names = arm_names(embodiment)
        self.model = compile_scene(arm_scene(embodiment))
        self.data = mujoco.MjData(self.model)
        self.state = SceneState(self.model, names)
        robots = embodiment.robots
        self.plants = {arm: ServoPlant(robots[arm], names[arm], self.model, self.data) for arm in robots}
        limits = {arm: (np.array(robot.position_min_rad), np.array(robot.position_max_rad)) for arm, robot in robots.items()}
        self.ik = {arm: SceneIk(self.model, names[arm], *limits[arm]) for arm in robots}
        self.home = {arm: np.array(robot.home_rad) for arm, robot in robots.items()}
        self.open = {arm: reach.width_max_m for arm, reach in self.layout.arms.items()}

    def place(self, seed: int) -> None:
        self.task = task_of_seed(seed, self.layout.bimanual)
        self.state.write(self.data, draw_placement(seed, self.layout, self.task), self.home, self.open)
        mujoco.mj_forward(self.model, self.data)
        for arm, plant in self.plants.items():
            plant.rest(self.open[arm])

    def solve(self, seed: int, limit_s: float = 15.0) -> Outcome:
        self.place(seed)
        judge, start_s = Judge(self.task, self.state.world(self.data)), self.data.time
        targets = {arm: self.home[arm].copy() for arm in self.plants}
        while self.data.time - start_s < limit_s and not (judge.outcome.success or judge.outcome.failed):
            mujoco.mj_kinematics(self.model, self.data)
            goals = self._goals(targets)
            for step in range(1, ROW_STEPS + 1):
                for arm, plant in self.plants.items():
                    plant.drive(targets[arm] + (goals[arm] - targets[arm]) * step / ROW_STEPS)
                    plant.apply(TIMESTEP_S)
                mujoco.mj_step(self.model, self.data)
                if step % CONTROL_STEPS == 0:
                    judge.update(self.state.world(self.data), self.data.time)
            targets = goals
        return judge.outcome

    def _goals(self, targets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        world = self.state.world(self.data)
        plan = (
            plan_pair(world, self.task, 1, self.layout)
            if self.layout.bimanual
            else plan_chunk(world, self.task, 1, self.layout.arms["arm"])
        )
        goals = {}
        for number, arm in enumerate(self.plants):
            row = plan[0][0, 7 * number : 7 * number + 7]
            self.plants[arm].grip(0.0 if row[6] > 0.5 else self.open[arm], self.embodiment.robots[arm].gripper.force_n)
            goals[arm] = self.ik[arm].solve(targets[arm], row[:6])
        return goals


@pytest.fixture(scope="module", params=ARMS)
def table(request) -> Table:
    return Table(load_embodiment(request.param))


def test_expert_solves_every_kind_of_task(table):
    for seed in range(6):
        outcome = table.solve(seed)
        assert outcome.success and not outcome.wrong_object, f"seed {seed}, {table.task.text}: {outcome.detail}"
    if table.layout.bimanual:
        assert {task_of_seed(seed, True) for seed in range(6)} >= set(bimanual_tasks())


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


def test_every_camera_sees_the_blocks_at_work(table):
    table.place(1)
    assert set(table.layout.cameras) == set(table.embodiment.cameras)
    renderer = Renderer(table.model, 160, 120)
    image = renderer.render(table.data, "front").astype(int)
    renderer.close()
    for channel in range(3):
        rest = [i for i in range(3) if i != channel]
        assert np.all(image[..., [channel]] > image[..., rest] * 1.5 + 20, axis=-1).sum() > 10


def test_a_robot_without_a_table_is_named():
    with pytest.raises(ConfigError, match="did you mean 'kinova'"):
        layout_of("kinva")
