"""Training: episodes on disk, batches, disturbance, and a loop that learns, resumes and fails clearly."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError
from vla_ros.policies.layout import layout_for
from vla_ros.policies.text import build_tokenizer
from vla_ros.training import run as run_module
from vla_ros.training.closed_loop import Result
from vla_ros.training.config import load_training
from vla_ros.training.dataset import Batches, Demonstrations, Reader
from vla_ros.training.demonstrations import BEFORE_GRASP, HELD, Episode, episode_seeds, load_episode, save_episode
from vla_ros.training.disturbance import Disturbance
from vla_ros.training.phrasings import all_training_sentences
from vla_ros.training.train import train

INSTRUCTION = "pick up the red block and put it on the plate"
RESULT = Result(1, 0.5, 0.0, 30.0, 8, 0)
LAYOUT = layout_for(load_embodiment("franka"), ("front", "wrist"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_episode(seed, steps=12):
    """A bright square is the block; the hand should go to it."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((steps, 2, 48, 64, 3), np.uint8)
    objects = rng.uniform(-0.1, 0.1, (8, 3)) + np.array([0.5, 0, 0.02])
    objects[5:] = np.nan
    column, row = int(32 + 200 * (objects[0, 1])), int(24 + 150 * (objects[0, 0] - 0.5))
    frames[:, :, row : row + 6, column : column + 6, 0] = 255
    pose = np.tile([0.5, 0.0, 0.3, np.pi, 0.0, 0.0], (steps, 1)) + rng.normal(size=(steps, 6)) * 0.01
    targets = np.zeros((steps, 16, 7))
    targets[..., :6] = pose[:, None]
    targets[..., :3] += (objects[0] - pose[:, :3])[:, None] * np.linspace(0, 1, 16)[:, None]
    targets[:, 8:, 6] = 1
    stage = np.array([BEFORE_GRASP] * (steps - 4) + [HELD] * 4, np.uint8)
    return Episode(
        frames,
        np.column_stack([pose, np.full(steps, 0.08)]),
        targets,
        np.tile(objects, (steps, 1, 1)),
        stage,
        np.tile([0, 3], (steps, 1)),
        INSTRUCTION,
        seed,
        True,
        ("pick red block", "place on plate"),
        (stage == HELD).astype(np.uint8),
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    (path / "franka").mkdir(parents=True)
    for seed in range(30):
        save_episode(path / "franka", make_episode(100_000 + seed))
    return path


@pytest.fixture
def config():
    base = load_training("robovlms_franka", steps=120, episodes=30)
    network = dict(base.network, hidden_size=64, text_width=32, keypoints=8)
    optimisation = dataclasses.replace(base.optimisation, batch=8, warm_up_steps=5, save_every_steps=20, average=0.9)
    return dataclasses.replace(base, image={"width": 64, "height": 48}, network=network, optimisation=optimisation)


@pytest.fixture
def no_simulator(monkeypatch):
    """The closed loop answers at once: these tests are about the loop around it."""
    checked = []

    def check(config, source, checkpoint, seeds, **_):
        checked.append(checkpoint.name)
        return RESULT

    monkeypatch.setattr(run_module, "check_closed_loop", check)
    return checked


def test_an_episode_survives_the_disk(tmp_path):
    episode = make_episode(7)
    save_episode(tmp_path, episode)
    again = load_episode(tmp_path, 7)
    for field in dataclasses.fields(Episode):
        assert np.array_equal(getattr(again, field.name), getattr(episode, field.name), equal_nan=field.name == "objects"), field.name
    assert episode_seeds(tmp_path) == [7] and len(list(tmp_path.iterdir())) == 2


def test_an_episode_from_before_there_were_skills_is_read(tmp_path):
    old = dataclasses.replace(make_episode(7), chain=(), skill=None, roles=np.array([0, 3]))
    save_episode(tmp_path, dataclasses.replace(old, objects=old.objects[:, :7]))
    again = load_episode(tmp_path, 7)
    assert again.objects.shape == (len(again), 8, 3) and np.isnan(again.objects[:, 7]).all()
    assert again.roles.shape == (len(again), 2) and again.chain == ()
    with pytest.raises(DataError, match="collect it again"):
        again.skill_name(0)


def test_a_broken_episode_is_named(tmp_path):
    save_episode(tmp_path, make_episode(7))
    path = tmp_path / "7.steps.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"7\.steps\.npz.*collect again"):
        load_episode(tmp_path, 7)


def test_batches_are_normalised_and_draw_by_stage(folder, config):
    data = Demonstrations(folder / "franka", LAYOUT, (0.0, 1.0, 0.0))
    drawn = data.draw(np.random.default_rng(0), 500)
    assert (data.step[drawn] >= 8).all()
    tokenizer = build_tokenizer(all_training_sentences(data.instructions()))
    batch = Batches([data], [1.0], Reader(tokenizer, 24, lambda layout, sentence: sentence), config.augmentation, 0).next(8)
    assert batch.images.shape == (8, 2, 3, 48, 64) and batch.actions.shape == (8, 16, 7) and batch.embodiment == "franka"
    assert batch.actions.abs().max() <= 1 and batch.images.abs().max() < 1.3
    assert set(batch.actions[..., 6].unique().tolist()) <= {-1.0, 1.0}
    assert batch.objects[:, :5].isfinite().all() and batch.objects[:, 5:].isnan().all()


def test_batches_number_the_episodes_of_all_sources(folder, config):
    data, again = (Demonstrations(folder / "franka", LAYOUT, (1.0, 1.0, 1.0)) for _ in range(2))
    tokenizer = build_tokenizer(all_training_sentences(data.instructions()))
    reader = Reader(tokenizer, 24, lambda layout, sentence: sentence)
    same_robot_twice = Batches([data, again], [1.0, 1.0], reader, config.augmentation, 0)
    seen = [same_robot_twice.next(16) for _ in range(20)]
    assert all(batch.episode.dtype == torch.int64 and batch.episode.shape == (16,) for batch in seen)
    firsts = {int(batch.episode.min()) // 30 for batch in seen}
    assert firsts == {0, 1} and all(int(batch.episode.min()) // 30 == int(batch.episode.max()) // 30 for batch in seen)
    for batch in seen:  # where the block was is the same within an episode, and in no other
        places = {int(number): batch.objects[batch.episode == number, 0] for number in batch.episode.unique()}
        assert all((place == place[0]).all() for place in places.values())
        assert len({tuple(place[0].tolist()) for place in places.values()}) == len(places)


def test_demonstrations_of_another_robot_are_named(folder):
    aloha = layout_for(load_embodiment("aloha"), ("front", "left_wrist", "right_wrist"))
    with pytest.raises(DataError, match="2 cameras, 7 channels; aloha has 3 and 14"):
        Demonstrations(folder / "franka", aloha, (1.0, 1.0, 1.0))


def test_training_learns_and_leaves_a_checkpoint_that_says_how(folder, config, tmp_path, no_simulator):
    assert train(config, folder, tmp_path / "out") == {"franka": RESULT}
    with (tmp_path / "out" / "log.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["motion"]]
    first, last = ({name: float(row[name]) for name in ("motion", "gripper", "loss")} for row in (rows[0], rows[-1]))
    assert last["gripper"] < 0.5 * first["gripper"] and last["motion"] < 0.95 * first["motion"] and last["loss"] < first["loss"]
    values = json.loads((tmp_path / "out" / "best" / "config.json").read_text())
    assert values["training"]["steps"] == 120 and values["training"]["episodes"] == {"franka": 30}
    assert values["training"]["fast_loop"]["franka, after training"]["success_rate"] == 0.5
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert no_simulator[-1] == "best"


def test_a_killed_training_resumes_where_it_was_saved(folder, config, tmp_path, no_simulator, monkeypatch):
    advance, out = run_module.Trainer.advance, tmp_path / "out"

    def killed(self, batch):
        if self.step == 45:
            raise KeyboardInterrupt
        return advance(self, batch)

    monkeypatch.setattr(run_module.Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, out)
    started = []

    def watched(self, batch):
        started.append(self.step)
        return advance(self, batch)

    monkeypatch.setattr(run_module.Trainer, "advance", watched)
    train(config, folder, out, resume=True)
    assert started[0] == 40 and started[-1] == 119


def test_resume_without_a_state_says_so(folder, config, tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config, folder, tmp_path / "new", resume=True)


def test_a_diverged_loss_ends_with_the_parts_and_keeps_the_checkpoint(folder, config, tmp_path, no_simulator, monkeypatch):
    advance, out = run_module.Trainer.advance, tmp_path / "out"

    def poisoned(self, batch):
        if self.step == 30:
            batch = dataclasses.replace(batch, actions=batch.actions * float("nan"))
        return advance(self, batch)

    monkeypatch.setattr(run_module.Trainer, "advance", poisoned)
    with pytest.raises(DataError, match=r"step 30: the loss is nan .*motion nan"):
        train(config, folder, out)
    assert (out / "latest" / "model.safetensors").is_file()


def test_a_full_disk_names_the_last_good_checkpoint(folder, config, tmp_path, no_simulator, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module.Trainer, "save", full)
    with pytest.raises(DataError, match=r"No space left.*--resume"):
        train(config, folder, tmp_path / "out")


def test_no_memory_says_what_to_lower(folder, config, tmp_path, no_simulator, monkeypatch):
    def greedy(self, batch):
        raise MemoryError("cannot allocate 9 GB")

    monkeypatch.setattr(run_module.Trainer, "advance", greedy)
    with pytest.raises(DataError, match=r"out of memory .*9 GB.*lower optimisation\.batch \(now 8\)"):
        train(config, folder, tmp_path / "out")


def test_disturbed_commands_stay_near_and_the_gripper_drops_sometimes(config):
    noise = config.noise
    targets = make_episode(0).targets[0]
    targets[:, 6] = 1
    actions, released = [], 0
    for seed in range(200):
        disturbance = Disturbance(LAYOUT, noise, np.random.default_rng(seed))
        rows = [disturbance.command(targets, HELD) for _ in range(30)]
        actions += rows
        released += "0.00.00.00.0" in "".join(str(row[6]) for row in rows)
    away = np.linalg.norm(np.array(actions)[:, :3] - targets[1, :3], axis=1)
    assert 0.001 < np.median(away) < 0.03 and away.max() < 0.2
    assert 0.1 < released / 200 < 0.35


def test_disturbance_in_joints_moves_both_arms_on_their_own(config):
    aloha = layout_for(load_embodiment("aloha"), ("front", "left_wrist", "right_wrist"))
    disturbance = Disturbance(aloha, config.noise, np.random.default_rng(0))
    rows = np.array([disturbance.command(np.zeros((16, 14)), HELD) for _ in range(400)])
    joints = rows[:, ~aloha.grippers]
    assert 0.005 < joints.std() < 0.05 and np.abs(joints).max() < 0.3
    assert abs(np.corrcoef(rows[:, 0], rows[:, 7])[0, 1]) < 0.2
    assert set(np.unique(rows[:, aloha.grippers])) == {0.0, 1.0}
