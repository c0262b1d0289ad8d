"""Collecting demonstrations and checking a policy in closed loop, against a table top small enough to reason about."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.core.types import ActionChunk, Inference
from vla_ros.policies.layout import layout_for
from vla_ros.training import closed_loop
from vla_ros.training.closed_loop import check_closed_loop, in_turn
from vla_ros.training.collect import collect
from vla_ros.training.config import load_training
from vla_ros.training.demonstrations import PLACED, episode_seeds, load_episode

GOAL = np.array([0.5, 0.1, 0.1])


class Table:
    """A hand that follows at once; the task is done when it is near GOAL, and wrong when it goes below the table."""

    def __init__(self, embodiment, cameras, width, height):
        assert embodiment == "franka"
        self.cameras, self.size = cameras, (height, width)

    def instructions(self, kind):
        return {"place": ["pick up the red block and put it on the plate"]}.get(kind, [])

    def chain(self):
        return "pick red block", "place on plate"

    def skill(self, view):
        return int(view.state[0] > 0.45)

    def roles(self, skill=0):
        return np.array([0, 3])

    def reset(self, seed, instruction, disturb_start=False):
        self.pose = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])
        self.time, self.odd = 0, seed % 2 == 1

    def look(self, render=True):
        images = {name: np.full((*self.size, 3), self.time, np.uint8) for name in self.cameras} if render else {}
        return SimpleNamespace(images=images, state=np.append(self.pose, 0.08), objects=np.tile(GOAL, (8, 1)))

    def expert(self, view, horizon):
        ahead = np.minimum(1, 0.2 * np.arange(1, horizon + 1))[:, None]
        targets = np.tile(np.append(view.state[:6], 0.0), (horizon, 1))
        targets[:, :3] += ahead * (GOAL - view.state[:3])
        return targets, PLACED if self.outcome().success else 0

    def step(self, action):
        self.pose = np.asarray(action[:6], dtype=float)
        self.time += 1

    def outcome(self):
        success = bool(np.linalg.norm(self.pose[:3] - GOAL) < 0.02)
        return SimpleNamespace(success=success, wrong_object=bool(self.pose[2] < 0.05), steps_done=int(success), steps=1)

    def close(self):
        pass


class Follower:
    """A policy that says when its picture was taken: row k lifts the hand to (picture + k) mm."""

    spec = SimpleNamespace(state=layout_for(load_embodiment("franka"), ("front",)).state)

    def __init__(self):
        self.pictures, self.sentences = [], []

    def reset(self):
        pass

    def infer(self, observation):
        picture = int(observation.frames["front"].image[0, 0, 0])
        self.pictures.append(picture)
        self.sentences.append(observation.instruction)
        rows = np.tile([0.9, 0.0, 0.0, np.pi, 0.0, 0.0, 0.0], (16, 1))
        rows[:, 2] = 0.1 + (picture + np.arange(16)) / 1000
        return Inference(ActionChunk(0, 0.1, ("x", "y", "z", "rx", "ry", "rz", "closed"), rows, 0))


@pytest.fixture
def config():
    base = load_training("robovlms_franka", episodes=3)
    source = dataclasses.replace(base.sources[0], simulator="test_training_closed_loop:Table")
    return dataclasses.replace(base, sources=(source,), image={"width": 64, "height": 48})


def changed(config, **values):
    return dataclasses.replace(config.sources[0], **values)


@pytest.fixture
def follower(monkeypatch):
    policy = Follower()
    monkeypatch.setattr(closed_loop, "load_policy", lambda checkpoint, embodiment: policy)
    return policy


def test_collect_stops_after_success_and_only_makes_what_is_missing(config, tmp_path):
    collect(config, config.sources[0], tmp_path)
    seeds = episode_seeds(tmp_path)
    assert seeds == [100_000, 100_001, 100_002]
    episode = load_episode(tmp_path, seeds[0])
    assert episode.success and len(episode) < 60 and episode.frames.shape[1:] == (2, 48, 64, 3)
    assert episode.chain == ("pick red block", "place on plate") and episode.roles.shape == (len(episode), 2)
    assert [episode.skill_name(0), episode.skill_name(-1)] == ["pick", "place"]
    # the label is clean although what was executed was not
    assert np.allclose(episode.targets[:, -1, :3], GOAL)
    before = (tmp_path / "100000.steps.npz").stat().st_mtime_ns
    collect(config, changed(config, episodes=4), tmp_path)
    assert len(episode_seeds(tmp_path)) == 4 and (tmp_path / "100000.steps.npz").stat().st_mtime_ns == before


def test_a_full_disk_while_collecting_says_so(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vla_ros.training.collect.save_episode", full)
    with pytest.raises(DataError, match=r"No space left.*finished episodes are kept"):
        collect(config, config.sources[0], tmp_path)


def test_an_unknown_simulator_is_a_config_error(config, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        collect(config, changed(config, simulator="vla_ros.nowhere:Loop"), tmp_path)


def test_a_kind_of_task_that_the_table_lacks_is_named(config, tmp_path):
    with pytest.raises(ConfigError, match=r"kinds\.bimanual: the table of franka has no such task"):
        collect(config, changed(config, kinds={"place": 1.0, "bimanual": 1.0}), tmp_path)


def test_kinds_take_turns():
    assert in_turn([["a", "b"], ["x", "y", "z"]]) == ["a", "x", "b", "y", "a", "z"]


@pytest.mark.parametrize(("rows", "delay"), [(1, 0), (4, 0), (4, 1), (8, 2)])
def test_each_step_executes_the_row_of_its_own_instant(config, follower, monkeypatch, rows, delay):
    heights = []
    monkeypatch.setattr(Table, "step", lambda self, action: (heights.append(action[2]), setattr(self, "time", self.time + 1)))
    result = check_closed_loop(config, config.sources[0], "any", [0], execute_steps=rows, delay_steps=delay)
    assert np.allclose(heights, 0.1 + np.arange(len(heights)) / 1000)
    assert follower.pictures[:3] == [0, max(0, rows - delay), max(0, 2 * rows - delay)]
    assert result.success_rate == 0 and result.episodes == 1


def test_success_wrong_object_and_phrasing_are_reported(config, follower, monkeypatch):
    monkeypatch.setattr(Table, "outcome", lambda self: SimpleNamespace(success=self.time > 0, wrong_object=self.odd, steps_done=1, steps=1))
    result = check_closed_loop(config, config.sources[0], "any", [0, 1], phrasing=2)
    assert (result.success_rate, result.wrong_object_rate, result.mean_steps) == (1.0, 0.5, 1.0)
    assert set(follower.sentences) == {"on the plate goes the red block"}


def test_a_task_of_several_steps_has_as_much_time_and_counts_its_steps(config, follower, monkeypatch):
    longest = []

    def outcome(self):
        longest.append(self.time)
        return SimpleNamespace(success=False, wrong_object=False, steps_done=1 + self.odd, steps=3)

    monkeypatch.setattr(Table, "outcome", outcome)
    monkeypatch.setattr(closed_loop, "LONGEST_STEPS", 20)
    result = check_closed_loop(config, config.sources[0], "any", [0, 1])
    assert result.success_rate == 0 and result.progress == pytest.approx(0.5)
    assert max(longest) == 60
    assert "progress 50.0%" in str(result)
