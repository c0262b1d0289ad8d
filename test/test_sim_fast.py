"""The fast loop and its expert: succeeds, repeats itself, recovers, and stays within the robot's limits."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError
from vla_ros.core.rotations import angle_between
from vla_ros.sim.expert import BEFORE_GRASP, DT_S, HELD, PLACED
from vla_ros.sim.fast import FastLoop
from vla_ros.sim.tasks import parse_task

ARM = load_embodiment("franka").robots["arm"]


@pytest.fixture(scope="module")
def loop():
    loop = FastLoop("franka", ["front", "wrist"])
    yield loop
    loop.close()


def run(loop: FastLoop, steps: int = 120, disturb=None) -> list[np.ndarray]:
    """Follows the expert until success; returns the states that were passed."""
    path = []
    for _ in range(steps):
        view = loop.look(render=False)
        targets, stage = loop.expert(view, 1)
        path.append(view.state)
        loop.step(targets[0] if disturb is None else disturb(stage, targets[0]))
        if loop.outcome().success:
            break
    return path


@pytest.mark.parametrize("kind", ["place", "stack"])
def test_expert_succeeds_on_every_seed(loop, kind):
    failed = []
    for seed in range(20):
        loop.reset(seed, loop.instructions(kind)[seed % 6], disturb_start=seed % 2 == 1)
        run(loop)
        outcome = loop.outcome()
        if not outcome.success or outcome.wrong_object:
            failed.append((seed, outcome.detail))
    assert not failed


def test_expert_recovers_from_drops_and_noise(loop):
    rng = np.random.default_rng(0)
    held = release = dropped = 0

    def disturb(stage, action):
        """Jitters every command, and opens the hand once, three steps after it took the block."""
        nonlocal held, release, dropped
        held += stage == HELD
        if held == 3 and not release:
            release, dropped = 6, dropped + 1
        elif release > 1:
            release -= 1
        return np.array([*action[:3] + rng.normal(size=3) * 0.006, *action[3:6], 0.0 if release > 1 else action[6]])

    successes = 0
    for seed in range(10):
        held = release = 0
        loop.reset(seed, loop.instructions("place")[seed % 6])
        run(loop, 160, disturb)
        successes += loop.outcome().success
    assert dropped == 10
    assert successes >= 9


def test_expert_follows_a_moved_block(loop):
    loop.reset(2, loop.instructions("place")[2])
    for step in range(120):
        if step == 8:
            loop.shift("green block", 0.0, 0.06)
        loop.step(_first(loop))
    assert loop.outcome().success and not loop.outcome().wrong_object


def test_same_seed_same_run(loop):
    paths = []
    for _ in range(2):
        loop.reset(4, loop.instructions("place")[4], disturb_start=True)
        paths.append(np.array(run(loop)))
    assert np.array_equal(paths[0], paths[1])


def test_wrong_object_is_seen(loop):
    """The expert is told another task than the judge."""
    loop.reset(0, loop.instructions("place")[0])
    for _ in range(40):
        loop._task = parse_task("pick up the green block and put it on the plate")
        loop.step(_first(loop))
    assert loop.outcome().wrong_object and not loop.outcome().success


def test_chunks_pass_the_safety_limits(loop):
    for seed in range(6):
        loop.reset(seed, loop.instructions("place")[seed], disturb_start=True)
        for _ in range(45):
            view = loop.look(render=False)
            targets, stage = loop.expert(view, 16)
            assert stage in (BEFORE_GRASP, HELD, PLACED)
            assert targets.shape == (16, 7)
            path = np.vstack([view.state[:6], targets[:, :6]])
            assert np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1).max() <= ARM.tcp_velocity_max_m_s * DT_S
            assert angle_between(path[1:, 3:], path[:-1, 3:]).max() <= ARM.tcp_rotation_max_rad_s * DT_S
            assert np.abs(np.diff(targets[:, 3:6], axis=0)).max() < 0.5, "rotation vectors jump from +pi to -pi"
            assert np.all(targets[:, :3] >= ARM.workspace_min_m) and np.all(targets[:, :3] <= ARM.workspace_max_m)
            assert set(np.unique(targets[:, 6])) <= {0.0, 1.0}
            loop.step(targets[0])


def test_chunk_foretells_the_run(loop):
    """Rows are kinematic: what is commanded later from later states lies close to what was foretold."""
    loop.reset(1, loop.instructions("place")[1])
    foretold, _ = loop.expert(loop.look(render=False), 10)
    for row in range(10):
        now, _ = loop.expert(loop.look(render=False), 1)
        assert np.linalg.norm(now[0, :3] - foretold[row, :3]) < 0.05
        loop.step(now[0])


def test_pictures_have_twice_the_policy_size(loop):
    loop.reset(0, loop.instructions("place")[0])
    images = loop.look().images
    assert {name: image.shape for name, image in images.items()} == {"front": (192, 256, 3), "wrist": (192, 256, 3)}
    assert all(image.dtype == np.uint8 for image in images.values())


def test_unknown_camera_is_named():
    with pytest.raises(ConfigError, match="did you mean 'front'"):
        FastLoop("franka", ["frnt"])


def _first(loop: FastLoop) -> np.ndarray:
    return loop.expert(loop.look(render=False), 1)[0][0]
