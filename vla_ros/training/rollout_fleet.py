"""Where the episodes of `vla reinforce` are made: in this process, or divided among several that each have their own tables."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import torch

from vla_ros.core.errors import ConfigError
from vla_ros.policies.checkpoint import CONFIG, CheckpointConfig, read_config, read_tokenizer
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.qwen_vla.actor import Actor
from vla_ros.policies.weights import load_network
from vla_ros.training.reinforce_config import ReinforcementConfig, Task
from vla_ros.training.rollouts import Collector, Episode

SYSTEM = "qwen_vla"  # whose chunks have a probability
_worker: Collector | None = None


def open_collector(config: ReinforcementConfig, folder: Path) -> tuple[Collector, CheckpointConfig]:
    """Loads a checkpoint to roll it out.

    Raises:
        ConfigError: a system without log-probabilities, more rows to execute than a chunk has, more denoising steps than the network.
        PolicyError: a broken checkpoint, or one that was not made for a task's robot.
    """
    checkpoint = read_config(folder)
    if checkpoint.system != SYSTEM:
        raise ConfigError(
            f"{folder / CONFIG}: system {checkpoint.system}; reinforcement needs the probability of a chunk, which {SYSTEM} has"
        )
    if config.rollout.execute_steps > checkpoint.horizon:
        raise ConfigError(f"rollout.execute_steps = {config.rollout.execute_steps}; a chunk of {folder} has {checkpoint.horizon} rows")
    network = load_network(folder, lambda: make_network(checkpoint, str(folder / CONFIG)))
    if config.ppo.denoising_steps > network.euler_steps:
        raise ConfigError(f"ppo.denoising_steps = {config.ppo.denoising_steps}; {folder} takes {network.euler_steps} from noise to chunk")
    collector = Collector(config, checkpoint, read_tokenizer(folder), Actor(network.to(memory_format=torch.channels_last)))
    for task in config.tasks:
        collector.policy(task.embodiment)
    return collector, checkpoint


def _start(config: ReinforcementConfig, folder: Path) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker, _ = open_collector(config, folder)


def _collect(job: tuple[dict[str, np.ndarray], Task, list[int]]) -> list[Episode]:
    weights, task, seeds = job
    _worker.actor.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return _worker.collect(task, seeds)


class Fleet:
    """Makes the episodes of an iteration, in one process or in several.

    Args:
        collector: of this process, with the weights that learn.
        folder: of the checkpoint that further processes start from.
    """

    def __init__(self, config: ReinforcementConfig, collector: Collector, folder: Path) -> None:
        self._collector, self._parts = collector, config.rollout.processes
        # spawn: a renderer's GL context does not survive a fork
        self._pool = None if self._parts == 1 else multiprocessing.get_context("spawn").Pool(self._parts, _start, (config, folder))

    def collect(self, task: Task, seeds: list[int]) -> list[Episode]:
        """Returns the episodes of the scenes `seeds`, in their order."""
        if self._pool is None:
            return self._collector.collect(task, seeds)
        weights = {name: tensor.contiguous().numpy() for name, tensor in self._collector.actor.state_dict().items()}
        jobs = [(weights, task, part.tolist()) for part in np.array_split(seeds, self._parts) if len(part)]
        return [episode for episodes in self._pool.map(_collect, jobs, chunksize=1) for episode in episodes]

    def close(self) -> None:
        """Ends the processes and frees the renderers."""
        if self._pool is not None:
            self._pool.terminate()
        self._collector.close()
