"""Placements, sentences, meshes and pictures of the simulated table."""

from __future__ import annotations

from itertools import combinations

import mujoco
import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.sim.layout import arm_names, layout_of
from vla_ros.sim.meshes import CELL_M, cluster
from vla_ros.sim.placement import BLOCK_YAW_RAD, draw_placement
from vla_ros.sim.render import Renderer, compile_scene, intrinsics
from vla_ros.sim.scene import build_simulator
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import BLOCKS, KINDS, Goal, Task, parse_task, task_of_seed, tasks

HOME = np.array([0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785])


@pytest.fixture(scope="module")
def scene():
    model = compile_scene(build_simulator(tuple(HOME)).scene)
    data = mujoco.MjData(model)
    state = SceneState(model, arm_names(load_embodiment("franka")))
    state.write(data, draw_placement(3), {"arm": HOME}, {"arm": 0.08})
    mujoco.mj_forward(model, data)
    return model, data, state


def test_placement_is_a_function_of_the_seed():
    first, again, other = draw_placement(5), draw_placement(5), draw_placement(6)
    assert all(np.array_equal(first.position[name], again.position[name]) for name in first.position)
    assert first.yaw == again.yaw
    assert not np.array_equal(first.position["plate"], other.position["plate"])


def test_placements_leave_room_and_use_the_whole_area():
    drawn = [draw_placement(seed) for seed in range(200)]
    for placement in drawn:
        for one, two in combinations(placement.position, 2):
            apart = np.linalg.norm(placement.position[one] - placement.position[two])
            blocks = (one in BLOCKS) + (two in BLOCKS)
            assert apart >= (0.17, 0.13, 0.09)[blocks]
        assert all(abs(yaw) <= BLOCK_YAW_RAD for yaw in placement.yaw.values())
    spots = np.array([placement.position[name] for placement in drawn for name in BLOCKS])
    low, high = np.array(layout_of("franka").block_area_m).T
    assert np.all(spots.min(0) < low + 0.02) and np.all(spots.max(0) > high - 0.02)
    assert np.all(spots >= low) and np.all(spots <= high)


def test_tasks_read_back_what_they_say():
    for task in (task for kind in KINDS for task in tasks(kind)):
        assert parse_task(task.text) == task
    assert parse_task("Pick up the RED  block and put it in the bowl.") == Task((Goal("red block", "bowl"),))
    assert {task_of_seed(seed) for seed in range(1000, 1006)} == set(tasks())


@pytest.mark.parametrize(
    "text", ["", "pick up the pink block and put it on the plate", "stack the red block on the red block", "put the red block in the plate"]
)
def test_other_sentences_are_refused_with_the_valid_ones(text):
    with pytest.raises(ConfigError, match="pick up the red block and put it on the plate"):
        parse_task(text)


def test_world_reads_what_was_written(scene):
    _, data, state = scene
    placement, world = draw_placement(3), state.world(data)
    for name, spot in placement.position.items():
        assert world.position[name][:2] == pytest.approx(spot)
    for name, yaw in placement.yaw.items():
        assert np.sin(2 * (world.yaw[name] - yaw)) == pytest.approx(0, abs=1e-6)  # up to quarter turns
    assert world.gripper_width_m == pytest.approx(0.08)
    assert world.tcp_position == pytest.approx([0.307, 0.0, 0.487], abs=2e-3)


def test_tcp_is_the_one_of_libfranka(scene):
    """The control box reports O_T_EE by its own kinematics: same joints, same pose."""
    _, data, state = scene
    world = state.world(data)
    robot = build_simulator(tuple(HOME))
    robot.init()
    pose = robot.robots[0].kinematics(HOME)
    assert world.tcp_position == pytest.approx(pose.translation, abs=1e-4)
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, world.tcp_quat_xyzw[[3, 0, 1, 2]])
    assert matrix.reshape(3, 3) == pytest.approx(pose.rotation, abs=1e-3)


def test_everything_stays_where_it_was_put(scene):
    model, _, state = scene
    data = mujoco.MjData(model)
    state.write(data, draw_placement(8), {"arm": HOME}, {"arm": 0.08})
    mujoco.mj_forward(model, data)
    before = state.world(data).position
    for _ in range(300):
        data.qpos[state.arm["arm"]] = HOME
        data.qvel[state.arm_dof["arm"]] = 0
        mujoco.mj_step(model, data)
    after = state.world(data).position
    for name in before:
        assert after[name] == pytest.approx(before[name], abs=1e-3)


def test_light_meshes_are_light():
    rng = np.random.default_rng(0)
    vertices = rng.uniform(0, 0.1, (20_000, 3))
    faces = rng.integers(0, len(vertices), (40_000, 3))
    light, light_faces = cluster(vertices, faces)
    assert len(light) <= (0.1 / CELL_M + 1) ** 3
    assert light_faces.max() < len(light)
    assert np.all(light_faces[:, 0] != light_faces[:, 1])


def test_pictures_show_all_objects(scene):
    model, data, _ = scene
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    for camera in layout_of("franka").cameras:
        renderer = Renderer(model, 160, 120)
        image = renderer.render(data, camera).astype(int)
        renderer.close()
        assert image.shape == (120, 160, 3)
        for name, mask in colours.items():
            channel = mask.index(1)
            rest = [i for i in range(3) if i != channel]
            found = np.all(image[..., [channel]] > image[..., rest] * 1.6 + 20, axis=-1).sum()
            assert found > 10, f"{name} block is not in the picture of {camera}"


def test_intrinsics_project_where_the_picture_shows(scene):
    """A block's centre, projected by hand into the optical frame, has the block's colour."""
    model, data, state = scene
    size = (640, 480)
    renderer = Renderer(model, *size)
    image = renderer.render(data, "front")
    renderer.close()
    pinhole = intrinsics(model, "front", *size)
    assert pinhole.fx == pinhole.fy == pytest.approx(617, abs=3)  # a D435i's colour camera at 640x480
    camera = model.camera("front").id
    axes = data.cam_xmat[camera].reshape(3, 3) @ np.diag([1, -1, -1])  # MuJoCo looks along -z, optical frames along +z
    for channel, name in enumerate(BLOCKS):
        x, y, z = axes.T @ (state.world(data).position[name] - data.cam_xpos[camera])
        pixel = image[round(pinhole.cy + pinhole.fy * y / z), round(pinhole.cx + pinhole.fx * x / z)].astype(int)
        assert pixel.argmax() == channel


def test_garbage_pictures_are_refused(scene):
    model, _, _ = scene
    renderer = Renderer(model, 64, 48)
    for garbage in (np.zeros((48, 64, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)):
        with pytest.raises(DeviceError, match="osmesa"):
            renderer._check(garbage, "front")
    renderer.close()
