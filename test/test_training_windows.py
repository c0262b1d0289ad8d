"""Windows of observations: what a network with a history sees in training is what it sees in a rollout."""

import dataclasses

import numpy as np
import pytest
import torch
from test_training_loop import LAYOUT, make_episode

from vla_ros.policies.network import Inputs, to_pixels
from vla_ros.policies.robo_vlms.network import RoboVlms
from vla_ros.policies.text import build_tokenizer
from vla_ros.training.config import Augmentation, LossWeights, load_training
from vla_ros.training.dataset import Batches, Demonstrations, Reader, augment
from vla_ros.training.demonstrations import save_episode
from vla_ros.training.objective import Objective
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.processes import start_processes
from vla_ros.training.trainer import Trainer

CALM = Augmentation(0, 0.0, 0.0, 0.0, 0.0, 0.0)
NOISY = Augmentation(3, 0.2, 0.0, 0.01, 0.1, 0.01)
WINDOW = 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def data(tmp_path):
    for seed, steps in enumerate((3, 9, 5)):
        episode = make_episode(seed, steps=max(steps, 4))
        columns = {name: getattr(episode, name) for name in ("frames", "state", "targets", "objects", "stage", "roles", "skill")}
        kept = {name: column[:steps].copy() for name, column in columns.items() if column is not None}
        kept["frames"][:, :, 0, 0] = 40 * seed + np.arange(steps)[:, None, None]
        save_episode(tmp_path, dataclasses.replace(episode, **kept))
    return Demonstrations(tmp_path, LAYOUT, (1.0, 1.0, 1.0))


def batches(data, augmentation=CALM, window=WINDOW, seed=0):
    tokenizer = build_tokenizer(all_training_sentences(data.instructions()))
    return Batches([data], [1.0], Reader(tokenizer, 24, lambda layout, sentence: sentence), augmentation, seed, window), tokenizer


def test_a_window_is_the_steps_before_and_never_another_episode(data):
    every = np.arange(len(data))
    expected = []
    for i in every:
        row = [i]
        while len(row) < WINDOW:
            before = row[0] - 1
            same = before >= 0 and data.owner[before] == data.owner[i]
            row.insert(0, before if same else row[0])
        expected.append(row)
    assert data.before(every, WINDOW).tolist() == expected


def test_a_batch_has_the_frames_and_states_of_its_window(data):
    made, _ = batches(data)
    batch = made.next(32)
    assert batch.images.shape == (32, WINDOW, 2, 3, 48, 64) and batch.state.shape == (32, WINDOW, 10) and batch.actions.shape == (32, 16, 7)
    marks = ((batch.images[:, :, :, 0, 0, 0] + 1) * 127.5).round().int()
    features = torch.from_numpy(data.state_statistics.normalize(data.layout.features(data.state), clip=False)).float()
    for sample, row in enumerate(marks[:, :, 0].tolist()):
        assert marks[sample, :, 1].tolist() == row
        found = [int(np.flatnonzero((data.owner == mark // 40) & (data.step == mark % 40))[0]) for mark in row]
        assert found == data.before(np.array(found[-1:]), WINDOW)[0].tolist()
        torch.testing.assert_close(batch.state[sample], features[found])
        torch.testing.assert_close(batch.actions[sample], torch.from_numpy(data.actions[found[-1]]))


def test_one_shift_tint_and_error_for_a_window(data):
    rng = np.random.default_rng(0)
    still = torch.from_numpy(rng.integers(0, 255, (5, 1, 2, 16, 16, 3)).astype(np.uint8)).expand(-1, 3, -1, -1, -1, -1)
    out = augment(still, NOISY, np.random.default_rng(1))
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out[:, 0], to_pixels(still[:, 0]))
    assert torch.equal(out[:, 0], augment(still[:, 0], NOISY, np.random.default_rng(1)))  # and a single one is treated as before
    same = batches(data, NOISY)[0]._disturbed(data, np.zeros((16, 4, 7)))
    assert np.ptp(same, axis=1).max() == 0 and np.ptp(same, axis=0).min() > 0


def test_a_policy_head_trains_on_windows_and_streams_what_it_learned(data):
    made, tokenizer = batches(data, load_training("robovlms_franka").augmentation)
    sizes = {
        "backbone": "convolutional", "formulation": "policy_head", "head": "lstm", "window": WINDOW,
        "vocabulary": tokenizer.get_vocab_size(),
        "text_length": 24, "text_width": 16, "hidden_size": 32, "blocks": 1, "keypoints": 4, "head_width": 32, "head_layers": 1,
        "gripper_weight": 0.125,
    }  # fmt: skip
    network = RoboVlms({"franka": data.layout}, 16, sizes)
    options = dataclasses.replace(load_training("robovlms_franka").optimisation, steps=60, warm_up_steps=2, learning_rate=3e-3, bf16=False)
    trainer = Trainer(Objective(network, LossWeights(0.25, 0.5)), options, start_processes())
    losses = [float(trainer.advance(made.next(8))["loss"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses
    whole = batches(data)[0].next(1)
    network.eval().reset()
    with torch.no_grad():
        for step in range(WINDOW):
            streamed = network.predict(Inputs("franka", whole.images[:, step], whole.state[:, step], whole.tokens))
        torch.testing.assert_close(streamed, network.predict(whole), rtol=0, atol=1e-5)
