"""Held-out episodes choose the checkpoint where there is no simulator; whole trajectories for training without images."""

import csv
import dataclasses
import json

import lerobot_dataset as written
import numpy as np
import pytest
import torch
from test_training_lerobot import configuration, source_of
from test_training_loop import LAYOUT, make_episode
from test_training_windows import CALM

from vla_ros.core.embodiment import find_config, load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.policies import load_policy
from vla_ros.policies.qwen_vla.network import QwenVla
from vla_ros.policies.qwen_vla.stages import configure_stage
from vla_ros.policies.text import build_tokenizer
from vla_ros.training import run as run_module
from vla_ros.training.config import load_training
from vla_ros.training.dataset import Batches, Demonstrations, Reader
from vla_ros.training.demonstrations import save_episode
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.train import train


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "episodes"
    path.mkdir()
    for seed in range(10):
        save_episode(path, make_episode(seed, steps=5 + seed))
    return path


def test_held_out_episodes_are_neither_drawn_nor_measured(folder):
    data = Demonstrations(folder, LAYOUT, (1.0, 1.0, 1.0), held_out_share=0.3, seed=1)
    held = np.unique(data.owner[data.held_out])
    assert len(held) == 3 and data.held_out.sum() == sum(len(data.episodes[i]) for i in held)
    drawn = data.draw(np.random.default_rng(0), 5000)
    assert set(drawn.tolist()) == set(np.flatnonzero(~data.held_out).tolist())
    again = Demonstrations(folder, LAYOUT, (1.0, 1.0, 1.0), held_out_share=0.3, seed=1)
    other = Demonstrations(folder, LAYOUT, (1.0, 1.0, 1.0), held_out_share=0.3, seed=2)
    assert (again.held_out == data.held_out).all() and (other.held_out != data.held_out).any()
    kept = ~data.held_out
    targets = np.concatenate([episode.targets for episode in data.episodes])
    expected = LAYOUT.measure(LAYOUT.features(data.state[kept]), LAYOUT.relative(targets[kept], data.state[kept]))
    assert data.layout.normalization == expected
    with pytest.raises(DataError, match=r"10 episodes, 10 to hold out.*validation_share: 0\.0"):
        Demonstrations(folder, LAYOUT, (1.0, 1.0, 1.0), held_out_share=0.96)


def test_a_dataset_alone_trains_and_keeps_the_checkpoint_with_the_least_validation_loss(tmp_path, monkeypatch):
    dataset = written.write_dataset(tmp_path / "set")
    losses = []
    measured = run_module.Validation.loss

    def made_up(self, objective, average):
        first, second = measured(self, objective, average), measured(self, objective, average)
        assert first == second and objective.training  # the same samples, sentences and noise
        losses.append(first)
        return {1: 3.0, 2: 1.0, 3: 2.0}[len(losses)]

    monkeypatch.setattr(run_module.Validation, "loss", made_up)
    assert train(configuration(source_of(dataset)), tmp_path / "data", tmp_path / "out") == {}
    assert len(set(losses)) == 3 and losses[-1] < losses[0]
    with (tmp_path / "out" / "log.csv").open() as stream:
        at = {int(row["step"]): float(row["validation"]) for row in csv.DictReader(stream) if row["validation"]}
    assert at == {4: 3.0, 8: 1.0, 12: 2.0}
    best, latest = (json.loads((tmp_path / "out" / name / "config.json").read_text())["training"] for name in ("best", "latest"))
    assert best["steps"] == 8 and best["validation"] == 1.0 and latest["steps"] == 12
    policy = load_policy(str(tmp_path / "out" / "best"), load_embodiment("franka"))
    assert policy.spec.channels == LAYOUT.channels


def test_without_held_out_episodes_the_newest_is_the_best(tmp_path):
    dataset = written.write_dataset(tmp_path / "set")
    config = configuration(source_of(dataset, validation_share=0.0))
    train(config, tmp_path / "data", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "best" / "config.json").read_text())["training"]["steps"] == 12


def test_a_network_with_a_history_is_trained_and_validated_on_windows(tmp_path, monkeypatch):
    dataset = written.write_dataset(tmp_path / "set")
    config = configuration(source_of(dataset))
    network = dict(config.network, formulation="policy_head", head="lstm", window=3, head_width=16, head_layers=1)
    seen, forward = [], run_module.Objective.forward

    def watched(self, batch):
        seen.append((tuple(batch.images.shape[:3]), tuple(batch.state.shape), self.training))
        return forward(self, batch)

    monkeypatch.setattr(run_module.Objective, "forward", watched)
    options = dataclasses.replace(config.optimisation, steps=2)
    train(dataclasses.replace(config, network=network, optimisation=options), tmp_path / "data", tmp_path / "out")
    assert {shape for shape, _, training in seen if training} == {(4, 3, 2)}
    held_out = [shape for shape, _, training in seen if not training]
    assert held_out and {shape[1:] for shape in held_out} == {(3, 2)} and {state[1:] for _, state, _ in seen} == {(3, 10)}


def test_episodes_of_a_dataset_cannot_be_asked_for(tmp_path):
    text = find_config("training", "robovlms_franka").read_text()
    start, stop = text.index("    simulator:"), text.index("noise:")
    path = tmp_path / "t.yaml"
    path.write_text(f"{text[:start]}    dataset: somewhere\n{text[stop:]}")
    assert load_training(str(path)).sources[0].held_out_share == 0.1
    with pytest.raises(ConfigError, match=r"episodes = 3: .*datasets"):
        load_training(str(path), episodes=3)


def test_whole_trajectories_go_to_the_end_of_the_episode_and_train_without_images(folder):
    data = Demonstrations(folder, LAYOUT, (1.0, 1.0, 1.0))
    tokenizer = build_tokenizer(all_training_sentences(data.instructions()))
    batches = Batches([data], [1.0], Reader(tokenizer, 24, lambda layout, sentence: sentence), CALM, 0, whole=True)
    indices = np.array([0, 4, len(data) - 1, len(data) - 14])
    batch = batches.of(data, indices)
    assert batch.images is None and batch.actions.shape == (4, 14, 7)
    for row, i in enumerate(indices):
        episode, step = data.episodes[data.owner[i]], data.step[i]
        left = len(episode) - step
        assert batch.actions[row, left:].isnan().all() and batch.actions[row, :left].isfinite().all()
        for k in range(left):
            low, high = (array[min(k, 15)] for array in (data.action_statistics.low, data.action_statistics.high))
            motion = LAYOUT.relative(episode.targets[step + k, :1], episode.state[step])[0]
            np.testing.assert_allclose(batch.actions[row, k], 2 * (motion - low) / (high - low) - 1, atol=1e-5)
    sizes = dict(load_training("qwen_vla").network, hidden_size=32, text_width=16, keypoints=4, vocabulary=tokenizer.get_vocab_size())
    network = QwenVla({"franka": data.layout}, 16, dict(sizes, expert_width=32, expert_blocks=1))
    configure_stage(network, "t2a")
    loss = network.loss(batches.next(4))[0]
    loss.backward()
    assert loss.isfinite() and all(parameter.grad is None for parameter in network.backbone.parameters())
