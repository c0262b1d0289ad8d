"""The simulated camera: draws the mirror's state, and the same picture as the fast loop."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.sim.arms import arm_scene
from vla_ros.sim.camera import MujocoCamera
from vla_ros.sim.fast import FastLoop
from vla_ros.sim.mirror import MirrorWriter, mirror_path
from vla_ros.sim.render import compile_scene

ADDRESS = f"127.9.{os.getpid() % 200 + 1}.9"


@pytest.fixture(scope="module")
def loop():
    loop = FastLoop("franka", ["front", "wrist"], 160, 120)
    loop.reset(11, loop.instructions("place")[0])
    yield loop
    loop.close()


@pytest.fixture
def mirror(loop):
    writer = MirrorWriter(mirror_path(ADDRESS), loop._model)
    writer.write(loop._data.qpos, 0.0, 1000)
    yield writer
    writer.close()


def next_frame(camera: MujocoCamera, patience: int = 400):
    for _ in range(patience):
        if (frame := camera.read()) is not None:
            return frame
    pytest.fail("no frame")


@pytest.mark.parametrize("name", ["front", "wrist"])
def test_draws_what_the_fast_loop_draws(loop, mirror, name):
    camera = MujocoCamera(name, 320, 240, 30, ADDRESS)
    camera.start()
    try:
        frame = next_frame(camera)
    finally:
        camera.stop()
    assert (frame.stamp_ns, frame.number, frame.frame_id) == (1000, 0, f"{name}_color_optical_frame")
    assert frame.image.dtype == np.uint8 and (frame.intrinsics.width, frame.intrinsics.height) == (320, 240)
    assert np.array_equal(frame.image, loop.look().images[name])


def test_stamps_are_of_the_capture_and_a_dead_simulator_gives_no_frames(loop, mirror):
    camera = MujocoCamera("front", 64, 48, 60, ADDRESS)
    camera.start()
    try:
        assert next_frame(camera).stamp_ns == 1000
        assert [camera.read() for _ in range(5)] == [None] * 5
        mirror.write(loop._data.qpos, 0.1, 2000)
        frame = next_frame(camera)
        assert (frame.stamp_ns, frame.number) == (2000, 1)
        restarted = MirrorWriter(mirror_path(ADDRESS), loop._model)
        restarted.write(loop._data.qpos, 0.0, 3000)
        assert next_frame(camera).stamp_ns == 3000
    finally:
        camera.stop()
    camera.stop()


def test_frames_of_earlier_reads_are_not_drawn_over(loop, mirror):
    camera = MujocoCamera("front", 64, 48, 60, ADDRESS)
    camera.start()
    try:
        first = next_frame(camera)
        copy = first.image.copy()
        moved = loop._data.qpos.copy()
        moved[0] += 1.0
        mirror.write(moved, 0.1, 2000)
        assert not np.array_equal(next_frame(camera).image, copy)
    finally:
        camera.stop()
    assert np.array_equal(first.image, copy)


def test_a_restarted_simulator_brings_its_own_scene(loop, mirror):
    """The picture is drawn of the model beside the state, whatever robot stands there."""
    camera = MujocoCamera("front", 64, 48, 60, ADDRESS)
    camera.start()
    try:
        first = next_frame(camera).image
        other = compile_scene(arm_scene(load_embodiment("piper")))
        restarted = MirrorWriter(mirror_path(ADDRESS), other)
        restarted.write(other.qpos0, 0.0, 3000)
        frame = next_frame(camera)
        assert frame.stamp_ns == 3000 and np.abs(frame.image.astype(int) - first).mean() > 5
        assert frame.intrinsics.fy == pytest.approx(24 / np.tan(np.radians(42.0) / 2))
    finally:
        camera.stop()
        restarted.close()


def test_no_simulation_no_camera():
    with pytest.raises(DeviceError, match="no simulation runs here"):
        MujocoCamera("front", address="127.9.9.250").start()


def test_unknown_camera_is_named(mirror):
    with pytest.raises(ConfigError, match="did you mean 'wrist'"):
        MujocoCamera("wirst", address=ADDRESS).start()
