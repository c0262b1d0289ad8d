"""The real-time simulation behind the Franka's own protocol: franky moves it, the mirror shows it, resets do not disturb it."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError, PolicyError
from vla_ros.core.rig import RobotRig, load_rig
from vla_ros.core.types import Action
from vla_ros.robots.franka import Franka
from vla_ros.sim.mirror import MirrorReader, mirror_path
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.script import ScriptPolicy
from vla_ros.sim.server import TabletopServer

ADDRESS = f"127.9.{os.getpid() % 200 + 1}.1"
TASK = "pick up the blue block and put it in the bowl"
DRAWER_TASK = "open the drawer, put the red block in it and close it"


def rig(address: str, seed: int = 0):
    """The simulated Franka's rig at another address."""
    shipped = load_rig("franka_sim")
    arm = RobotRig("franka", {"address": address})
    return replace(shipped, robots={"arm": arm}, simulation=replace(shipped.simulation, address=address, seed=seed))


@pytest.fixture(scope="module")
def server():
    server = TabletopServer(rig(ADDRESS, seed=3))
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def robot(server):
    robot = Franka(load_embodiment("franka").robots["arm"], ADDRESS)
    robot.connect()
    yield robot
    robot.close()


def test_first_placement_is_of_the_seed(server):
    for name, spot in draw_placement(3).position.items():
        assert server.objects()[name][:2] == pytest.approx(spot, abs=2e-3)
    assert server.task == "pick up the green block and put it in the bowl"


def test_reset_places_and_chooses_the_task(server):
    assert server.reset(8, TASK) == TASK == server.task
    assert server.objects()["plate"][:2] == pytest.approx(draw_placement(8).position["plate"], abs=2e-3)
    assert server.reset(1000) == "pick up the blue block and put it on the plate"
    with pytest.raises(ConfigError, match="valid:"):
        server.reset(0, "dance")


def test_move_object(server):
    server.reset(8, TASK)
    before = server.objects()
    assert server.move_object("", 0.06, -0.02) == "blue block"
    assert server.move_object("plate", 0.0, 0.03) == "plate"
    after = server.objects()
    assert after["blue block"] - before["blue block"] == pytest.approx([0.06, -0.02, 0], abs=2e-3)
    assert after["plate"] - before["plate"] == pytest.approx([0, 0.03, 0], abs=1e-3)
    assert not server.judge().wrong_object
    with pytest.raises(ConfigError, match="did you mean 'bowl'"):
        server.move_object("bowll", 0, 0)


def test_a_task_with_a_drawer_brings_its_own_scene_and_the_arm_stays(server, robot):
    """Who looks at the mirror follows; the control box goes on with the arm at home."""
    server.reset(3, TASK)
    reader = MirrorReader(mirror_path(ADDRESS))
    plain = reader.model
    server.reset(3, DRAWER_TASK)
    assert "drawer" in server.objects() and "bowl" not in server.objects()
    assert (server.judge().steps_done, server.judge().steps) == (0, 3)
    assert reader.read().qpos.size == 33 and reader.model is not plain
    time.sleep(0.4)
    assert robot.read().position == pytest.approx(load_embodiment("franka").robots["arm"].home_rad, abs=0.01)
    policy = ScriptPolicy(load_embodiment("franka"), address=ADDRESS)
    plan = policy.infer(SimpleNamespace(stamp_ns=time.time_ns(), instruction=DRAWER_TASK)).plan
    assert (plan.step, plan.skill, plan.task_chain[3]) == (0, "open", "close drawer")
    server.reset(3, TASK)
    assert reader.read().qpos.size == plain.nq and "bowl" in server.objects()
    with pytest.raises(PolicyError, match="no drawer on the table"):
        policy.infer(SimpleNamespace(stamp_ns=time.time_ns(), instruction=DRAWER_TASK))


def test_mirror_runs_with_the_simulation(server):
    reader = MirrorReader(mirror_path(ADDRESS))
    first = reader.read()
    while (last := reader.read()).time_s < first.time_s + 0.5:
        time.sleep(0.01)
    assert abs(last.stamp_ns - time.time_ns()) < 1e9
    assert last.qpos.size == first.qpos.size == 34


def test_the_arm_stays_home_after_a_reset(server, robot):
    robot.stop()
    for seed in (1, 2):
        server.reset(seed)
        time.sleep(0.4)
        assert robot.read().position == pytest.approx(load_embodiment("franka").robots["arm"].home_rad, abs=0.01)


def test_script_solves_a_task_through_the_driver(server, robot):
    """Expert, mirror, libfranka's protocol, physics and judge in one."""
    policy = ScriptPolicy(load_embodiment("franka"), address=ADDRESS)
    task = server.reset(5, TASK)
    begin_s = time.monotonic()
    while not server.judge().success and time.monotonic() - begin_s < 30:
        chunk = policy.infer(SimpleNamespace(stamp_ns=time.time_ns(), instruction=task)).chunk
        for row in chunk.data[:3]:
            robot.command(Action(chunk.channels, row, time.time_ns()))
            time.sleep(0.05)
    outcome = server.judge()
    assert outcome.success and not outcome.wrong_object, outcome.detail
    log = server.motion_log()
    assert log.shape[1] == 3 and log[:, 2].max() > 0.3
    robot.stop()


def test_the_log_shows_when_the_arm_came_to_rest(server, robot):
    server.reset(0)
    target = np.array([0.40, 0.10, 0.40, np.pi, 0.0, 0.0, 0.0])
    channels = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.closed")
    for _ in range(10):
        robot.command(Action(channels, target, time.time_ns()))
        time.sleep(0.02)
    stop_ns = time.time_ns()
    robot.stop()
    time.sleep(1.0)
    log = server.motion_log()
    assert np.all(np.diff(log[:, 0]) > 0)
    assert log[log[:, 0] < stop_ns][-10:, 2].max() > 0.1
    assert log[-5:, 2].max() < 0.02


def test_script_needs_a_canonical_sentence(server):
    with pytest.raises(PolicyError, match="canonical"):
        ScriptPolicy(load_embodiment("franka"), address=ADDRESS).infer(SimpleNamespace(stamp_ns=0, instruction="tidy up"))


def test_a_taken_address_is_named(server):
    with pytest.raises(DeviceError, match=re.escape(ADDRESS)):
        TabletopServer(rig(ADDRESS), domain=98).start()


def test_a_dead_simulation_says_so():
    address = ADDRESS.replace(".1", ".2") if ADDRESS.count(".1") == 1 else f"127.10.{os.getpid() % 200 + 1}.2"
    server = TabletopServer(rig(address), domain=97)
    server.start()
    server._engine.step = None
    with pytest.raises(DeviceError, match=r"died|stopped|did not answer|not running"):
        for _ in range(100):
            server.objects()
            time.sleep(0.02)
    with pytest.raises(DeviceError, match="died"):
        server.judge()
    server.close()
    again = TabletopServer(rig(address), domain=97)
    again.start()
    assert again.judge().success is False
    again.close()
    again.close()
    with pytest.raises(DeviceError, match="not running"):
        again.judge()
