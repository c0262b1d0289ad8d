"""Tasks of several steps: the drawer and the bowl, what the judge counts and the expert says; and that nothing else changed."""

from __future__ import annotations

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from vla_ros.cli.episodes import plan_episodes, split_kinds
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError
from vla_ros.sim.drawer import FLOOR_M, TRAVEL_M
from vla_ros.sim.expert import BEFORE_GRASP, DT_S, HELD
from vla_ros.sim.fast import THINGS, FastLoop
from vla_ros.sim.judge import HOLD_S, Judge
from vla_ros.sim.layout import layout_of
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.tasks import BLOCKS, CLEAR, parse_task
from vla_ros.sim.world import BLOCK_M, grip_point
from vla_ros.training.phrasings import HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, all_training_sentences, held_out, keywords

ARM = load_embodiment("franka").robots["arm"]
DRAWER = "open the drawer, put the red block in it and close it"
PLACE = "pick up the red block and put it on the plate"


@pytest.fixture(scope="module")
def loop():
    loop = FastLoop("franka", ["front", "wrist"], 64, 48)
    yield loop
    loop.close()


def run(loop: FastLoop, steps: int = 200, disturb=lambda view, action: action) -> list[int]:
    """Follows the expert until success; returns the skills that were passed, each once."""
    skills: list[int] = []
    for _ in range(steps):
        view = loop.look(render=False)
        targets, _ = loop.expert(view, 1)
        skill = loop.skill(view)
        skills += [skill] if not skills or skills[-1] != skill else []
        loop.step(disturb(view, targets[0]))
        if loop.outcome().success:
            break
    return skills


@pytest.mark.parametrize("kind", ["drawer", "clear"])
def test_expert_does_every_step_in_order(loop, kind):
    for seed in (0, 1, 2):
        instructions = loop.instructions(kind)
        loop.reset(seed, instructions[seed % len(instructions)], disturb_start=seed == 1)
        skills = run(loop)
        outcome = loop.outcome()
        assert outcome.success and not outcome.wrong_object, outcome.detail
        assert (outcome.steps_done, outcome.steps) == (3, 3)
        assert skills == list(range(len(loop.chain()))), "each skill once, in the order of the chain"


def test_chain_names_skills_and_what_they_are_about(loop):
    assert parse_task(DRAWER).chain == ("open drawer", "pick red block", "place in drawer", "close drawer")
    assert CLEAR.chain[2:4] == ("pick green block", "place in bowl") and len(CLEAR.chain) == 6
    loop.reset(0, DRAWER)
    names = [[THINGS[index] for index in loop.roles(skill)] for skill in range(4)]
    assert names == [["drawer", "drawer"], ["red block", "drawer"], ["red block", "drawer"], ["drawer", "drawer"]]
    there = np.isfinite(loop.look(render=False).objects).all(axis=1)
    assert [name for name, found in zip(THINGS, there, strict=True) if found] == [*BLOCKS, "drawer"]


def set_scene(loop: FastLoop, opening_m: float, inside: bool) -> None:
    """Moves the drawer, and the red block into it."""
    data = loop._data
    data.joint("drawer").qpos[0] = opening_m
    mujoco.mj_forward(loop._model, data)
    if inside:
        spot = loop._scene.world(data).position["drawer"]
        data.joint("red block").qpos[:3] = np.add(spot, (0.0, 0.0, FLOOR_M + BLOCK_M / 2))
    mujoco.mj_forward(loop._model, data)


@pytest.mark.parametrize(
    ("opening_m", "inside", "done", "why"),
    [
        (0.0, False, 0, "step 1 of 3: drawer open by 0.000 m"),
        (0.05, False, 0, "step 1 of 3: drawer open by 0.050 m"),
        (0.11, False, 1, "step 2 of 3: red block"),
        (0.11, True, 2, "step 3 of 3: drawer open by 0.110 m"),
        (0.05, True, 2, "step 3 of 3: drawer open by 0.050 m"),
        (0.0, True, 3, "step 3 of 3: all done"),
    ],
)
def test_progress_of_the_drawer_is_judged_from_where_things_are(loop, opening_m, inside, done, why):
    """Only opened; opened and put in; closed on it; closed without the block is not done."""
    loop.reset(3, DRAWER)
    judge = Judge(parse_task(DRAWER), loop.look(render=False).world)
    set_scene(loop, opening_m, inside)
    world = loop._scene.world(loop._data)
    judge.update(world, 0.0)
    outcome = judge.update(world, HOLD_S)
    assert (outcome.steps_done, outcome.success) == (done, done == 3)
    assert outcome.detail.startswith(why), outcome.detail


def test_a_hand_at_the_fin_or_the_block_has_not_done_its_step(loop):
    loop.reset(3, DRAWER)
    set_scene(loop, 0.0, inside=True)
    world = loop._scene.world(loop._data)
    judge = Judge(parse_task(DRAWER), world)
    gripping = world.seen_by(SimpleNamespace(position=grip_point(world), quat_xyzw=world.tcp_quat_xyzw, width_m=0.022))
    assert judge.update(gripping, 0.0).steps_done == 2 and "in the gripper" in judge.outcome.detail
    holding = world.seen_by(SimpleNamespace(position=world.position["red block"], quat_xyzw=world.tcp_quat_xyzw, width_m=0.04))
    assert judge.update(holding, 0.0).steps_done < 3 and "at the gripper" in judge.outcome.detail


def test_clearing_counts_blocks_in_any_order_and_wrong_objects_are_others(loop):
    loop.reset(4, CLEAR.text)
    data = loop._data
    world = loop._scene.world(data)
    judge = Judge(CLEAR, world)
    counted = []
    for name, (x, z) in {"blue block": (-0.02, 0.0), "red block": (0.022, 0.0), "green block": (0.0, 0.04)}.items():
        data.joint(name).qpos[:3] = world.position["bowl"] + (x, 0.0, 0.008 + BLOCK_M / 2 + z)
        mujoco.mj_forward(loop._model, data)
        counted.append(judge.update(loop._scene.world(data), 0.0).steps_done)
    assert counted == [1, 2, 3] and not judge.outcome.wrong_object
    assert judge.update(loop._scene.world(data), HOLD_S).success
    loop.reset(3, DRAWER)
    loop._data.joint("blue block").qpos[0] += 0.05
    mujoco.mj_forward(loop._model, loop._data)
    loop.step(loop.expert(loop.look(render=False), 1)[0][0])
    assert loop.outcome().wrong_object


def test_expert_recovers_what_was_undone(loop):
    """The block is dropped on the way to the drawer; then somebody pushes the drawer shut while the hand holds the block again."""
    dropped, shut = [], []

    def disturb(view, action):
        skill = loop.skill(view)
        if skill == 2 and len(dropped) < 6:
            dropped.append(skill)
            return np.append(action[:6], 0.0)
        if skill == 2 and not shut and view.world.tcp_position[2] > 0.12 and view.world.gripper_width_m < 0.042:
            shut.append(skill)
            loop._data.joint("drawer").qpos[0] = 0.02
        return action

    loop.reset(5, loop.instructions("drawer")[2])
    skills = run(loop, 360, disturb)
    assert dropped and shut
    assert loop.outcome().success and not loop.outcome().wrong_object, loop.outcome().detail
    assert skills.count(0) >= 2 and skills.count(1) >= 2, "it goes back to what must be done anew"


def test_a_chunk_foretells_that_a_held_block_is_set_aside_before_the_drawer_is_opened(loop):
    loop.reset(5, loop.instructions("drawer")[2])
    for _ in range(200):
        view = loop.look(render=False)
        if loop.skill(view) == 2 and view.world.tcp_position[2] > 0.12:
            break
        loop.step(loop.expert(view, 1)[0][0])
    loop._data.joint("drawer").qpos[0] = 0.02
    mujoco.mj_forward(loop._model, loop._data)
    view = loop.look(render=False)
    rows, stage = loop.expert(view, 30)
    opened = int(np.argmin(rows[:, 6]))
    cabinet_y = view.world.position["drawer"][1]
    assert stage == HELD and loop.skill(view) == 0 and rows[0, 6] == 1
    assert opened > 3 and rows[opened - 1, 2] < 0.05 and abs(rows[opened - 1, 1] - cabinet_y) > 0.15, "low and aside when it lets go"


def test_expert_begins_where_things_are(loop):
    loop.reset(6, DRAWER)
    set_scene(loop, TRAVEL_M, inside=False)
    assert loop.skill(loop.look(render=False)) == 1
    set_scene(loop, TRAVEL_M, inside=True)
    assert loop.skill(loop.look(render=False)) == 3


def test_chunks_pass_the_safety_limits_and_foretell_the_pull(loop):
    loop.reset(1, loop.instructions("drawer")[1], disturb_start=True)
    stages = set()
    for _ in range(60):
        view = loop.look(render=False)
        targets, stage = loop.expert(view, 16)
        stages.add(stage)
        path = np.vstack([view.state[:6], targets[:, :6]])
        assert np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1).max() <= ARM.tcp_velocity_max_m_s * DT_S
        assert np.all(targets[:, :3] >= ARM.workspace_min_m) and np.all(targets[:, :3] <= ARM.workspace_max_m)
        if stage == HELD and loop.skill(view) == 0 and view.world.opening_m < 0.03:
            assert targets[2:6, 0].max() > view.state[0] + 0.03, "the chunk pulls on"
        loop.step(targets[0])
    assert {BEFORE_GRASP, HELD} <= stages


def test_a_drawer_stays_where_it_is_left(loop):
    loop.reset(2, DRAWER)
    set_scene(loop, 0.06, inside=True)
    mujoco.mj_step(loop._model, loop._data, 500)
    world = loop._scene.world(loop._data)
    assert world.opening_m == pytest.approx(0.06, abs=1e-3)
    assert world.position["red block"] - world.position["drawer"] == pytest.approx([0.0, 0.0, FLOOR_M + BLOCK_M / 2], abs=2e-3)


def test_tasks_without_a_drawer_do_not_notice_it(loop):
    """Same scene, pictures and run before and after a task with the drawer, and in a loop that never had one."""
    fresh = FastLoop("franka", ["front", "wrist"], 64, 48)
    seen = []
    for table in (fresh, loop, loop):
        table.reset(4, PLACE, disturb_start=True)
        assert "drawer" not in table.look(render=False).world.position and table._model.nq == 34
        images = table.look().images
        for _ in range(12):
            table.step(table.expert(table.look(render=False), 1)[0][0])
        seen.append(np.concatenate([table.look().state, *(image.ravel() for image in (images | table.look().images).values())]))
        loop.reset(0, DRAWER)
        loop.look()
    fresh.close()
    assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[1], seen[2])


def test_placements_of_the_shipped_policies_are_as_they_were():
    placed = draw_placement(5)
    assert placed.position["red block"] == pytest.approx([0.625612217986935, -0.14655797152559977], abs=1e-12)
    assert draw_placement(5, task=CLEAR).position["bowl"] == pytest.approx(placed.position["bowl"], abs=0)
    for seed in range(50):
        beside = draw_placement(seed, task=parse_task(DRAWER)).position
        assert set(beside) == {*BLOCKS, "drawer"}
        assert min(abs(beside[name][1] - beside["drawer"][1]) for name in BLOCKS) > 0.16


def test_a_table_without_a_drawer_or_kind_says_so():
    with pytest.raises(ConfigError, match="did you mean 'drawer'"):
        split_kinds("place,drawr", layout_of("franka"))
    with pytest.raises(ConfigError, match="no tasks of kind 'drawer'"):
        split_kinds("drawer", layout_of("aloha"))
    assert split_kinds("", layout_of("aloha")) == ("bimanual", "place") and split_kinds("", layout_of("franka")) == ("place",)


@pytest.mark.parametrize("instruction_set", ["canonical", "train", "held-out"])
def test_episodes_of_several_kinds_take_turns_and_know_their_steps(instruction_set):
    plan = plan_episodes(0, 12, instruction_set, ("place", "drawer", "clear"))
    assert [episode.steps for episode in plan] == [1, 3, 3] * 4
    assert {episode.task for episode in plan[1::3]} == {DRAWER.replace("red", name.split()[0]) for name in BLOCKS}
    assert all((episode.instruction == episode.task) == (instruction_set == "canonical") for episode in plan) or instruction_set == "train"


@pytest.mark.parametrize("kind", ["drawer", "clear"])
def test_wordings(kind):
    task = {"drawer": DRAWER, "clear": CLEAR.text}[kind]
    assert TRAIN_TEMPLATES[kind][0].format(colour="red", container="bowl") == task
    trained = set(all_training_sentences([task]))
    assert len(HELD_OUT_TEMPLATES[kind]) == len(set(held_out(task))) == 5 and not trained & set(held_out(task))
    assert {"drawer", "red"} <= keywords(task) if kind == "drawer" else {"bowl", "table", "every"} <= keywords(task)
