"""`vla reinforce`: a tiny flow policy at a table with a known optimum, what counts as its action, resuming, and what a file may not say."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_ros.core.embodiment import config_dir, load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.core.yaml import load
from vla_ros.policies.checkpoint import CheckpointConfig, read_config, write_checkpoint
from vla_ros.policies.layout import Layout, layout_for
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.qwen_vla.actor import executed_sum
from vla_ros.policies.text import build_tokenizer
from vla_ros.policies.weights import load_network
from vla_ros.training import reinforce as reinforce_module
from vla_ros.training import rollout_fleet
from vla_ros.training.reinforce import reinforce
from vla_ros.training.reinforce_config import ReinforcementConfig, Task, load_reinforcement
from vla_ros.training.reinforce_learner import Learner
from vla_ros.training.rollout_fleet import open_collector

SENTENCE = "pick up the red block and put it on the plate"
HORIZON, EXECUTED, REACH_M = 4, 2, 0.1
GOAL_M, TIMES = 0.03, 2  # the hand must be sent farther to the side than this, so often in succession; untrained it goes anywhere


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Reach:
    """A hand that is sent to the side, and done when it was there some steps in succession: the optimum is to go there always."""

    def __init__(self, embodiment, cameras, width, height):
        self.cameras, self.size = cameras, (height, width)

    def instructions(self, kind):
        return [SENTENCE] if kind == "place" else []

    def reset(self, seed, instruction, disturb_start=False):
        self.pose, self.times = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0]), 0

    def look(self, render=True):
        images = {name: np.zeros((*self.size, 3), np.uint8) for name in self.cameras} if render else {}
        return SimpleNamespace(images=images, state=np.append(self.pose, 0.08))

    def step(self, action):
        self.times = self.times + 1 if self.times < TIMES and action[1] > GOAL_M else self.times * (self.times >= TIMES)

    def outcome(self):
        done = self.times >= TIMES
        return SimpleNamespace(success=done, wrong_object=False, steps_done=int(done), steps=1)

    def close(self):
        pass


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained one whose chunks reach REACH_M from where the hand is."""
    layout = layout_for(load_embodiment("franka"), ("front",))
    span = np.array([REACH_M] * 3 + [0.2] * 3 + [1.0])
    state = np.array([1.0] * 10)
    normalization = {
        "state": {"low": (-state).tolist(), "high": state.tolist()},
        "action": {"low": np.tile(-span, (HORIZON, 1)).tolist(), "high": np.tile(span, (HORIZON, 1)).tolist()},
    }
    tokenizer = build_tokenizer([SENTENCE])
    sizes = {
        "backbone": "convolutional", "text_length": 8, "text_width": 8, "hidden_size": 16, "blocks": 1, "keypoints": 4, "state_width": 10,
        "expert_width": 16, "expert_blocks": 1, "expert_heads": 2, "channels": 8, "euler_steps": 2,
        "vocabulary": tokenizer.get_vocab_size(),
    }  # fmt: skip
    layout = Layout(**{**vars(layout), "normalization": normalization})
    config = CheckpointConfig("qwen_vla", "test", {"franka": layout}, {"width": 32, "height": 32}, HORIZON, 0.1, sizes, {"steps": 7})
    torch.manual_seed(0)
    write_checkpoint(tmp_path / "start", config, make_network(config, "test").state_dict(), tokenizer)
    return tmp_path / "start"


@pytest.fixture
def config(checkpoint):
    base = load_reinforcement("qwen_vla_ppo", str(checkpoint), iterations=3)
    return dataclasses.replace(
        base,
        simulator=f"{__name__}:Reach",
        tasks=(Task("reach", "franka", "place", 1.0), Task("watched", "franka", "place", 0.0, "red block")),
        rollout=dataclasses.replace(base.rollout, episodes=32, environments=16, longest_steps=5, execute_steps=EXECUTED, level=0.8),
        ppo=dataclasses.replace(base.ppo, minibatch=32, actor_rate=1e-3, value_rate=1e-2, denoising_steps=2, largest_divergence=0.2),
        check=dataclasses.replace(base.check, every_iterations=2, episodes=4, final_episodes=8),
    )


def weights(folder):
    return load_network(folder, lambda: make_network(read_config(folder), "test")).state_dict()


def test_trying_raises_success_clearly(config, tmp_path):
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, iterations=8))
    learnt, watched = reinforce(config, tmp_path / "out")
    with (tmp_path / "out" / "log.csv").open() as stream:
        rollouts = [float(row["rollouts"]) for row in csv.DictReader(stream) if row["rollouts"]]
    assert len(rollouts) == 8
    assert np.mean(rollouts[-3:]) > np.mean(rollouts[:2]) + 0.25
    assert learnt.before.episodes == learnt.after.episodes == 8 and watched.task.name == "watched"
    training = json.loads((tmp_path / "out" / "best" / "config.json").read_text())["training"]
    assert training["history"] == [{"steps": 7}] and training["iterations"] in range(1, 9)
    assert training["reinforcement"]["ppo"]["gamma"] == config.ppo.gamma
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000


def test_a_resumed_run_is_the_uninterrupted_one(config, tmp_path, monkeypatch):
    reinforce(config, tmp_path / "whole")
    update = Learner.update

    def killed(self, episodes):
        if self.iteration == 1:
            raise KeyboardInterrupt
        return update(self, episodes)

    monkeypatch.setattr(Learner, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        reinforce(config, tmp_path / "out")
    monkeypatch.setattr(Learner, "update", update)
    reinforce(config, tmp_path / "out", resume=True)
    whole, resumed = weights(tmp_path / "whole" / "latest"), weights(tmp_path / "out" / "latest")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], tensor) for name, tensor in weights(tmp_path / "whole" / "start").items())


def test_rows_that_were_not_executed_do_not_count(config, checkpoint):
    collector, _ = open_collector(config, checkpoint)
    (episode,) = collector.collect(config.tasks[0], [3])
    assert episode.executed.tolist()[:2] == [EXECUTED, EXECUTED]
    log_probs = torch.from_numpy(episode.log_probs).transpose(0, 1).clone().requires_grad_()
    executed_sum(log_probs, torch.from_numpy(episode.executed)).sum().backward()
    for decision, rows in enumerate(episode.executed):
        assert (log_probs.grad[:, decision, :rows] == 1).all() and (log_probs.grad[:, decision, rows:] == 0).all()


def test_the_update_does_not_see_what_rows_beyond_the_executed_ended_as(config, checkpoint):
    """Another end of the last denoising step in those rows: the same loss to the bit; in executed ones: another."""
    collector, _ = open_collector(config, checkpoint)
    episodes = collector.collect(config.tasks[0], range(8))
    learner = Learner(collector.actor, config)

    def loss(rows):
        changed = []
        for episode in episodes:
            states = episode.states.copy()
            states[:, -1, rows, 1] += 0.1
            changed.append(dataclasses.replace(episode, states=states))
        (decisions,) = learner._decisions(changed)
        chosen = (decisions.executed == EXECUTED).nonzero()[:, 0]
        return float(learner._judge(decisions, chosen, torch.Generator().manual_seed(0))[0].actor.detach())

    assert loss(slice(EXECUTED, None)) == loss(slice(0, 0))
    assert loss(slice(0, 1)) != loss(slice(0, 0))


def test_old_and_new_probability_agree_before_the_first_step(config, checkpoint):
    collector, _ = open_collector(config, checkpoint)
    learner = Learner(collector.actor, config)
    (decisions,) = learner._decisions(collector.collect(config.tasks[0], range(8)))
    found, _ = learner._judge(decisions, torch.arange(len(decisions.values)), torch.Generator().manual_seed(0))
    assert float(found.divergence) == pytest.approx(0, abs=1e-6) and float(found.clipped) == 0


def test_an_episode_depends_on_its_seed_alone(config, checkpoint):
    """Neither on what runs beside it nor on the process that it runs in."""
    collector, _ = open_collector(config, checkpoint)
    task = config.tasks[0]
    together = collector.collect(task, range(6))
    alone = [collector.collect(task, [seed])[0] for seed in range(6)]
    rollout_fleet._start(config, checkpoint)
    state = {name: tensor.numpy() for name, tensor in collector.actor.state_dict().items()}
    elsewhere = rollout_fleet._collect((state, task, list(range(6))))
    for one, other, third in zip(together, alone, elsewhere, strict=True):
        assert one.seed == other.seed == third.seed and one.success == other.success == third.success
        np.testing.assert_allclose(one.states, other.states, atol=1e-5)
        np.testing.assert_array_equal(one.states, third.states)


def test_a_frozen_backbone_stays_and_the_warm_up_teaches_the_value_alone(config, checkpoint):
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, backbone=False, warm_up_iterations=1))
    collector, _ = open_collector(config, checkpoint)
    before = {name: tensor.clone() for name, tensor in collector.actor.state_dict().items()}
    learner = Learner(collector.actor, config)

    def changed():
        return {name.split(".")[1] for name, tensor in collector.actor.state_dict().items() if not torch.equal(tensor, before[name])}

    episodes = collector.collect(config.tasks[0], range(16))
    assert len({episode.success for episode in episodes}) == 2
    learner.update(episodes)
    assert changed() == {"line"}
    learner.update(episodes)
    assert changed() == {"line", "expert"}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(config, tmp_path, monkeypatch):
    collect = reinforce_module.Fleet.collect

    def poisoned(self, task, seeds):
        return [dataclasses.replace(e, values=e.values * np.float32("nan")) for e in collect(self, task, seeds)]

    monkeypatch.setattr(reinforce_module.Fleet, "collect", poisoned)
    with pytest.raises(DataError, match="iteration 0: the loss is nan"):
        reinforce(config, tmp_path / "out")
    assert (tmp_path / "out" / "latest" / "model.safetensors").is_file()


def test_resume_without_a_run_says_so(config, tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        reinforce(config, tmp_path / "new", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": {"execute_steps": 5}}, r"rollout\.execute_steps = 5; a chunk of .* has 4 rows"),
        ({"ppo": {"denoising_steps": 3}}, r"ppo\.denoising_steps = 3; .* takes 2 from noise to chunk"),
        ({"tasks": (Task("x", "franka", "stack", 1.0),)}, "x: the table of franka has no stack task"),
        ({"tasks": (Task("x", "franka", "place", 1.0, "cup"),)}, "no place task 'cup'"),
        ({"tasks": (Task("x", "kinova", "place", 1.0),)}, "made for franka, not 'kinova'"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_named(config, tmp_path, change, message):
    parts = {name: part if name == "tasks" else dataclasses.replace(getattr(config, name), **part) for name, part in change.items()}
    with pytest.raises(Exception, match=message) as found:
        reinforce(dataclasses.replace(config, **parts), tmp_path / "out")
    assert type(found.value).__name__ in ("ConfigError", "PolicyError")


def test_another_system_has_no_probabilities(config, tmp_path):
    with pytest.raises(ConfigError, match=r"system robovlms; reinforcement needs the probability"):
        reinforce(dataclasses.replace(config, checkpoint="robovlms_franka"), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gamma: 0.99", "gamma: 1.1", r"ppo\.gamma: 1\.1, expected 0 \.\. 1"),
        ("level: ", "level: 0.0 #", r"rollout\.level: 0\.0, expected > 0"),
        ("clip: 0.2", "clipping: 0.2", r"ppo\.clipping: unknown key.*clip"),
        ("share: 1.0", "share: 0.0", "a share above 0 for at least one"),
        ("first_seed: 200000", "first_seed: 900", "scenes 900 .. .* overlap"),
        ("final_seed: 1000", "final_seed: 510", "scenes 500 .. .* overlap"),
    ],
)
def test_a_wrong_file_names_key_and_line(tmp_path, old, new, message):
    text = (config_dir() / "training" / "qwen_vla_ppo.yaml").read_text()
    assert old in text
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load(path, ReinforcementConfig)
