"""Where a training starts, in what stage, with how many processes; and what it writes down of itself."""

# ruff: noqa: F811  pytest finds fixtures by the names of arguments

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training_loop import LAYOUT, RESULT, config, folder, make_episode, no_simulator  # noqa: F401  fixtures

from vla_ros.cli.train import train as command
from vla_ros.core.errors import ConfigError
from vla_ros.policies.checkpoint import read_config, read_tokenizer
from vla_ros.policies.network_policy import make_network
from vla_ros.training.config import load_training
from vla_ros.training.demonstrations import save_episode
from vla_ros.training.start import load_weights, tokenizer_of
from vla_ros.training.train import train


def steps(config, count, **changes):
    return dataclasses.replace(config, optimisation=dataclasses.replace(config.optimisation, steps=count), **changes)


def rows_of(out):
    with (out / "log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_log_tells_time_memory_and_rate_and_tensorboard_the_same(folder, config, tmp_path, no_simulator):
    out = tmp_path / "out"
    train(steps(config, 100), folder, out)
    train(steps(config, 150), folder, out, resume=True)
    rows = [row for row in rows_of(out) if row["loss"]]
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    elapsed = [float(row["elapsed_s"]) for row in rows]
    assert 0 < elapsed[0] < elapsed[1] < elapsed[2], "a resume goes on counting"
    assert all(float(row["memory_mib"]) > 50 for row in rows)
    assert [float(row["learning_rate"]) > 0 for row in rows] == [True] * 3
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [(event.step, pytest.approx(event.value, rel=1e-4)) for event in events.Scalars("loss")] == [
        (int(row["step"]), float(row["loss"])) for row in rows
    ]


def test_a_training_starts_from_the_weights_and_words_of_a_checkpoint(folder, config, tmp_path, no_simulator):
    first = tmp_path / "first"
    train(steps(config, 60), folder, first)
    settings = steps(config, 1, init=str(first / "best"))
    settings = dataclasses.replace(settings, optimisation=dataclasses.replace(settings.optimisation, learning_rate=1e-9, warm_up_steps=1))
    other = tmp_path / "other"
    (other / "franka").mkdir(parents=True)
    for seed in range(30):
        save_episode(other / "franka", make_episode(200_000 + seed))
    train(settings, other, tmp_path / "second")
    stored = read_config(tmp_path / "second" / "latest")
    assert stored.training["init"] == str(first / "best")
    assert stored.layouts == read_config(first / "best").layouts, "normalised as the weights know it, whatever the new data"
    there, here = make_network(stored, "first"), make_network(stored, "second")
    load_weights(there, first / "best", stored)
    load_weights(here, tmp_path / "second" / "latest", stored)
    assert all(torch.allclose(tensor, here.state_dict()[name], atol=1e-5) for name, tensor in there.state_dict().items())
    words = read_tokenizer(first / "best").get_vocab()
    assert read_tokenizer(tmp_path / "second" / "latest").get_vocab() == words


def test_weights_of_another_network_or_without_the_words_are_refused(folder, config, tmp_path, no_simulator):
    first = tmp_path / "first"
    train(steps(config, 1), folder, first)
    other = dataclasses.replace(config, network=config.network | {"hidden_size": 32}, init=str(first / "best"))
    with pytest.raises(ConfigError, match=r"config\.json is another network than the configuration's \(hidden_size: 32, there 64\)"):
        train(other, folder, tmp_path / "second")
    with pytest.raises(ConfigError, match="does not know the words banana, peel: train from scratch"):
        tokenizer_of(first / "best", ["pick up the red block", "peel the banana"])
    with pytest.raises(ConfigError, match="leave --init other out"):
        command(Path("robovlms_franka"), data=folder, out=first, init="other", resume=True)
    train(steps(config, 2, init=str(first / "best")), folder, first, resume=True)  # that of the file has had its say


@pytest.fixture
def qwen():
    base = load_training("qwen_vla", steps=3)
    sizes = {"text_width": 32, "hidden_size": 64, "blocks": 1, "keypoints": 4, "expert_width": 32, "expert_blocks": 1, "expert_heads": 2}
    franka = tuple(source for source in base.sources if source.embodiment == "franka")
    franka = tuple(dataclasses.replace(source, episodes=30) for source in franka)
    optimisation = dataclasses.replace(base.optimisation, batch=4, save_every_steps=3)
    image = {"width": 64, "height": 48}
    return dataclasses.replace(base, image=image, network=base.network | sizes, sources=franka, optimisation=optimisation)


def test_language_first_then_pictures(folder, qwen, tmp_path, no_simulator):
    """Qwen-VLA's T2A teaches the expert alone, from text and whole trajectories; the next stage starts from there."""
    train(dataclasses.replace(qwen, stage="t2a"), folder, tmp_path / "t2a")
    assert read_config(tmp_path / "t2a" / "latest").training["stage"] == "t2a"
    after = dataclasses.replace(qwen, stage="sft", init=str(tmp_path / "t2a" / "latest"))
    train(after, folder, tmp_path / "sft")
    t2a, sft = (read_config(tmp_path / name / "latest") for name in ("t2a", "sft"))
    untrained = make_network(t2a, "untrained")
    taught, shown = make_network(t2a, "t2a"), make_network(sft, "sft")
    load_weights(taught, tmp_path / "t2a" / "latest", t2a)
    load_weights(shown, tmp_path / "sft" / "latest", sft)
    moved = [name for name, tensor in taught.state_dict().items() if not torch.equal(tensor, shown.state_dict()[name])]
    assert {name.split(".")[0] for name in moved} == {"backbone", "expert"}
    assert untrained.stage.images and not untrained.whole_trajectories


def test_a_stage_that_there_is_not(folder, config, qwen, tmp_path):
    with pytest.raises(ConfigError, match="stage 'stf'; did you mean 'sft'"):
        train(dataclasses.replace(qwen, stage="stf"), folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="RoboVlms is not trained in stages"):
        train(dataclasses.replace(config, stage="sft"), folder, tmp_path / "out")


WHOLE_TRAINING = """
import dataclasses, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_training_start as tests
from vla_ros.training import run
torch.set_num_threads(1)
run.check_closed_loop = lambda *_, **__: tests.RESULT
tests.train(tests.steps(tests.small(), 12), Path({data!r}), Path({out!r}))
"""


def small():
    base = load_training("robovlms_franka", steps=12, episodes=4)
    network = dict(base.network, hidden_size=64, text_width=32, keypoints=8)
    optimisation = dataclasses.replace(base.optimisation, batch=4, warm_up_steps=5, save_every_steps=6)
    return dataclasses.replace(base, image={"width": 64, "height": 48}, network=network, optimisation=optimisation)


def test_several_processes_train_together_and_one_can_go_on(tmp_path, no_simulator):
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "franka").mkdir(parents=True)
    for seed in range(4):
        save_episode(data / "franka", make_episode(100_000 + seed))
    script = tmp_path / "train.py"
    script.write_text(WHOLE_TRAINING.format(tests=str(Path(__file__).parent), data=str(data), out=str(out)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*launch, script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in rows_of(out) if row["loss"]] == ["12"], "one of them writes"
    assert json.loads((out / "best" / "config.json").read_text())["training"]["processes"] == 2
    assert train(steps(small(), 14), data, out, resume=True) == {"franka": RESULT}
    assert read_config(out / "latest").training["processes"] == 1
