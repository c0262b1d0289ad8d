"""What `vla reinforce CONFIG` reads: one YAML file, every key known, units in the names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vla_ros.core.embodiment import find_config
from vla_ros.core.yaml import load

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """Tasks of one kind on one robot's table.

    Args:
        name: for tables and logs.
        kind: "place", "stack" or "bimanual", see `simulator.Simulator.instructions`.
        share: of the rollouts; 0: only measured, to see what it loses.
        containing: only instructions with this text; empty: all of the kind.
    """

    name: str
    embodiment: str
    kind: str
    share: float
    containing: str = ""

    def problems(self) -> Problems:
        if not self.share >= 0:
            yield "share", f"{self.share}, expected >= 0"


@dataclass(frozen=True)
class Rollout:
    """How experience is made.

    Args:
        episodes: of each iteration; every scene is seen once, from `first_seed` upwards.
        environments: tables that are stepped side by side in a process; their observations are one batch.
        processes: among which the episodes are divided.
        longest_steps: policy steps after which an episode has failed.
        execute_steps: rows of each chunk that are executed.
        level, temperature: of the noise that is injected while denoising, see `qwen_vla.sde.sample`.
        disturb_start: whether every arm starts a little off its home.
    """

    episodes: int
    environments: int
    processes: int
    first_seed: int
    longest_steps: int
    execute_steps: int
    level: float
    temperature: float
    disturb_start: bool

    def problems(self) -> Problems:
        for name in ("episodes", "environments", "processes", "longest_steps", "execute_steps"):
            if getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}, expected >= 1"
        for name in ("level", "temperature"):
            if not getattr(self, name) > 0:
                yield name, f"{getattr(self, name)}, expected > 0: without noise there is nothing to learn from"


@dataclass(frozen=True)
class Ppo:
    """Proximal policy optimisation; gamma, trace (lambda), clip and epochs of the paper are .99, .95, .2 and 4.

    Args:
        iterations: of rollout and update.
        minibatch: chunks.
        actor_rate, value_rate: Adam's learning rates.
        warm_up_iterations: in the first ones only the value head learns.
        backbone: whether it learns too; false: the action expert alone.
        denoising_steps: how many of the network's Euler steps, drawn anew for each minibatch, stand for a chunk's probability.
        imitation_weight: of the flow-matching loss towards the executed rows of episodes that succeeded; 0: plain PPO, as in the paper.
        largest_divergence: estimate of KL(old, new) beyond which the iteration's update ends.
    """

    iterations: int
    epochs: int
    minibatch: int
    actor_rate: float
    value_rate: float
    warm_up_iterations: int
    backbone: bool
    gamma: float
    trace: float
    clip: float
    value_weight: float
    denoising_steps: int
    imitation_weight: float
    largest_divergence: float
    clip_norm: float
    seed: int

    def problems(self) -> Problems:
        for name in ("iterations", "epochs", "minibatch", "denoising_steps"):
            if getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}, expected >= 1"
        for name in ("actor_rate", "value_rate", "clip", "largest_divergence", "clip_norm"):
            if not getattr(self, name) > 0:
                yield name, f"{getattr(self, name)}, expected > 0"
        if not self.imitation_weight >= 0:
            yield "imitation_weight", f"{self.imitation_weight}, expected >= 0"
        for name in ("gamma", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                yield name, f"{getattr(self, name)}, expected 0 .. 1"


@dataclass(frozen=True)
class Measurement:
    """Closed-loop success without injected noise: of the tasks that learn now and then, of all tasks before and after.

    The scenes of both differ from each other and from the rollouts'.
    """

    every_iterations: int
    episodes: int
    final_episodes: int
    first_seed: int
    final_seed: int

    def problems(self) -> Problems:
        for name in ("every_iterations", "episodes", "final_episodes"):
            if getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}, expected >= 1"


@dataclass(frozen=True)
class ReinforcementConfig:
    """A checkpoint that can do its tasks half, and how it learns the rest of them by trying.

    Args:
        checkpoint: a folder, or the name of one in config/checkpoints.
        simulator: an import path, see `simulator.Simulator`.
    """

    checkpoint: str
    simulator: str
    tasks: tuple[Task, ...]
    rollout: Rollout
    ppo: Ppo
    check: Measurement

    def problems(self) -> Problems:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names) or not any(task.share > 0 for task in self.tasks):
            yield "tasks", f"{names}, expected different names, and a share above 0 for at least one"
        train = _scenes(self.rollout.first_seed, self.rollout.episodes * self.ppo.iterations)
        check = _scenes(self.check.first_seed, self.check.episodes)
        final = _scenes(self.check.final_seed, self.check.final_episodes)
        for name, one, other in (("rollout", train, check), ("rollout", train, final), ("check", check, final)):
            if one.start < other.stop and other.start < one.stop:
                yield name, f"scenes {one.start} .. {one.stop - 1} and {other.start} .. {other.stop - 1} overlap: move a seed"


def _scenes(first: int, count: int) -> range:
    return range(first, first + count)


def load_reinforcement(name_or_path: str, checkpoint: str | None = None, iterations: int | None = None) -> ReinforcementConfig:
    """Reads a configuration from config/training or a path; the other arguments replace what it says.

    Raises:
        ConfigError: with file, line and key.
    """
    config = load(find_config("training", name_or_path), ReinforcementConfig)
    if checkpoint is not None:
        config = replace(config, checkpoint=checkpoint)
    if iterations is not None:
        config = replace(config, ppo=replace(config.ppo, iterations=iterations))
    return config
