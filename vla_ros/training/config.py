"""What `vla train CONFIG` reads: one YAML file, every key known, units in the names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vla_ros.core.embodiment import find_config
from vla_ros.core.errors import ConfigError
from vla_ros.core.yaml import load
from vla_ros.training.sources import Source

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Noise:
    """What disturbs the expert while it demonstrates, so that the data shows how to recover.

    Args:
        jitter_m, jitter_rad: standard deviation of every executed target; of a target in joints only the latter.
        burst_probability, burst_m: chance a step starts a burst of a few steps that pulls the hand away by about so much; joints are
            pulled by `burst_m` over an arm's length of 0.4 m.
        flip_probability: chance a step starts a short wrong gripper command.
        drop_share: share of the episodes in which the block is let go on the way.
        gripper_delay_steps: in each episode the gripper follows up to so many steps late.
        delay_steps: in each episode commands come from a chunk up to so many steps old, at its row for the present.
    """

    jitter_m: float
    jitter_rad: float
    burst_probability: float
    burst_m: float
    flip_probability: float
    drop_share: float
    gripper_delay_steps: int
    delay_steps: int


@dataclass(frozen=True)
class Augmentation:
    """`colour` is the share of gain and offset; `word_dropout` the chance that a word becomes <unk> (see `phrasings.keywords`)."""

    shift_px: int
    colour: float
    word_dropout: float
    position_noise_m: float
    rotation_noise_rad: float
    width_noise_m: float


@dataclass(frozen=True)
class LossWeights:
    """Weights of what `objective.Objective` adds to the network's own loss."""

    task_objects: float
    all_objects: float


@dataclass(frozen=True)
class Optimisation:
    """AdamW at `learning_rate`, linear warm-up, linear decay to 0 over the last `decay_share` of `steps`."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    warm_up_steps: int
    decay_share: float
    average: float
    clip_norm: float
    bf16: bool
    stage_weights: tuple[float, float, float]
    save_every_steps: int
    seed: int

    def problems(self) -> Problems:
        for name in ("steps", "batch", "learning_rate", "save_every_steps"):
            if not getattr(self, name) > 0:
                yield name, f"{getattr(self, name)}, expected > 0"
        for name in ("decay_share", "average"):
            if not 0 <= getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}, expected 0 <= {name} < 1"

    def rate(self, step: int) -> float:
        """Learning rate of `step` (from 0) as a share of `learning_rate`."""
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        left = (self.steps - step) / max(self.decay_share * self.steps, 1)
        return max(0.0, min(1.0, left))


@dataclass(frozen=True)
class Check:
    """Closed-loop success in the fast loop, the only gate that counts."""

    every_steps: int
    episodes: int
    final_episodes: int
    first_seed: int
    final_seed: int
    execute_steps: int


@dataclass(frozen=True)
class TrainingConfig:
    """One policy and how to train it, on one embodiment or on several at once.

    Args:
        init: checkpoint, by folder or name, whose weights and words it starts from; none: from scratch.
        stage: of the training, for systems that have stages: what learns, and from what.
    """

    system: str
    preset: str
    image: dict[str, int]
    horizon: int
    dt_s: float
    network: dict[str, object]
    sources: tuple[Source, ...]
    noise: Noise
    augmentation: Augmentation
    loss: LossWeights
    optimisation: Optimisation
    check: Check
    init: str = ""
    stage: str = ""

    def problems(self) -> Problems:
        names = [source.embodiment for source in self.sources]
        if not names or len(set(names)) < len(names):
            yield "sources", f"embodiments {names}, expected at least one, each once"


def load_training(
    name_or_path: str, steps: int | None = None, episodes: int | None = None, init: str | None = None, stage: str | None = None
) -> TrainingConfig:
    """Reads a training configuration, from config/training or a path; what is not None replaces what it says, `episodes` of each simulator.

    Raises:
        ConfigError: with file, line and key.
    """
    config = load(find_config("training", name_or_path), TrainingConfig)
    if steps is not None:
        config = replace(config, optimisation=replace(config.optimisation, steps=steps))
    config = replace(config, init=config.init if init is None else init, stage=config.stage if stage is None else stage)
    if episodes is not None:
        if all(source.dataset for source in config.sources):
            raise ConfigError(f"episodes = {episodes}: {name_or_path} makes no demonstrations, its sources are datasets: leave it out")
        sources = (source if source.dataset else replace(source, episodes=episodes) for source in config.sources)
        config = replace(config, sources=tuple(sources))
    return config
