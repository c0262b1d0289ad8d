"""The optimisation: what learns and is saved, where it starts, its stages, and several processes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vla_ros.core.errors import ConfigError
from vla_ros.policies.network import Batch
from vla_ros.training.config import LossWeights, load_training
from vla_ros.training.objective import Objective
from vla_ros.training.processes import start_processes
from vla_ros.training.start import configure_stage
from vla_ros.training.trainer import Trainer

OPTIONS = dataclasses.replace(load_training("robovlms_franka").optimisation, batch=4, warm_up_steps=1, bf16=False, average=0.5, steps=50)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Line(nn.Module):
    """The least network: a frozen reader with a tied copy and a counter, and a head that learns."""

    visual_size = hidden_size = 0

    def __init__(self, width=3):
        super().__init__()
        self.reader, self.head = nn.Linear(2, width), nn.Linear(width, 2)
        self.reader.requires_grad_(False)
        self.same = self.reader
        self.register_buffer("seen", torch.tensor(7))

    def loss(self, batch):
        found = self.head(self.same(batch.state))
        error = (found - batch.actions[:, 0]).square().mean()
        return error, {"error": error}, None, None


def make_trainer(network=None, options=OPTIONS):
    torch.manual_seed(0)
    return Trainer(Objective(network or Line(), LossWeights(0.0, 0.0)), options, start_processes())


def make_batch(seed, size=4):
    rng = torch.Generator().manual_seed(seed)
    state = torch.randn(size, 2, generator=rng)
    return Batch("franka", torch.zeros(size, 1, 3, 2, 2), state, torch.ones(size, 3, dtype=torch.int64), actions=(2 * state)[:, None])


def losses(trainer, seeds):
    return [float(trainer.advance(make_batch(seed))["loss"]) for seed in seeds]


def test_frozen_weights_stay_out_of_the_optimiser_and_in_what_is_saved():
    trainer = make_trainer()
    frozen = trainer.objective.network.reader.weight.clone()
    losses(trainer, range(5))
    assert sum(len(group["params"]) for group in trainer.optimiser.param_groups) == 2
    shipped = trainer.averaged_network()
    assert set(shipped) == {*(f"{part}.{kind}" for part in ("reader", "same", "head") for kind in ("weight", "bias")), "seen"}
    assert torch.equal(shipped["reader.weight"], frozen) and torch.equal(shipped["same.weight"], frozen) and shipped["seen"] == 7
    assert not torch.equal(shipped["head.weight"], trainer.objective.network.head.weight), "averaged"


def test_a_saved_state_goes_on_as_if_nothing_had_happened(tmp_path):
    first = make_trainer()
    losses(first, range(5))
    first.save(tmp_path)
    second = make_trainer()
    second.load(tmp_path)
    assert second.step == 5 and losses(second, range(5, 9)) == losses(first, range(5, 9))
    assert all(torch.equal(tensor, second.averaged_network()[name]) for name, tensor in first.averaged_network().items())


def test_the_state_of_another_network_or_stage_is_refused(tmp_path):
    trainer = make_trainer()
    losses(trainer, range(2))
    trainer.save(tmp_path)
    with pytest.raises(ConfigError, match=r"state\.safetensors: does not fit this configuration .*head\.weight.*another --out"):
        make_trainer(Line(width=5)).load(tmp_path)
    network = Line()
    network.reader.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"trained 2 parameters, this trains 4: only there \[\], only here \['network.reader.bias'"):
        make_trainer(network).load(tmp_path)


def test_a_network_without_stages_has_none():
    configure_stage(Line(), "", None)
    with pytest.raises(ConfigError, match="Line is not trained in stages"):
        configure_stage(Line(), "sft", None)


# Each of two processes has half of every batch; what they end with is written by the first.
TWO = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_training_optimiser import make_batch, make_trainer
torch.set_num_threads(1)
trainer = make_trainer()
rank = trainer._processes.process_index
for seed in range(5):
    whole = make_batch(seed, 8)
    half = slice(4 * rank, 4 * rank + 4)
    trainer.advance(type(whole)("franka", whole.images[half], whole.state[half], whole.tokens[half], actions=whole.actions[half]))
if trainer._processes.is_main_process:
    trainer.save(__import__("pathlib").Path({out!r}))
"""


def in_two_processes(folder, change=lambda source: source):
    script = folder / "two.py"
    script.write_text(change(TWO.format(tests=str(Path(__file__).parent), out=str(folder))))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*launch, script], env=environment, capture_output=True, text=True, timeout=200)


def test_two_processes_learn_what_one_learns_from_both_their_batches(tmp_path):
    done = in_two_processes(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = make_trainer(), make_trainer()
    for seed in range(5):
        one.advance(make_batch(seed, 8))
    two.load(tmp_path)
    assert two.step == 5
    for name, tensor in one.averaged_network().items():
        assert torch.allclose(two.averaged_network()[name].float(), tensor.float(), atol=1e-6), name


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path):
    spoil = "    whole.actions[0] = float('nan') if rank == 0 and seed == 2 else whole.actions[0]\n    half ="
    done = in_two_processes(tmp_path, lambda source: source.replace("    half =", spoil))
    assert done.returncode != 0 and done.stderr.count("DataError: step 2: the loss is") == 2, done.stderr[-3000:]
    assert not (tmp_path / "state.safetensors").exists()
