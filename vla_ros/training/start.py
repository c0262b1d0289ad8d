"""Where a training starts: the weights of a checkpoint, or none, and what of the network learns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from vla_ros.core.errors import ConfigError
from vla_ros.policies import find_checkpoint
from vla_ros.policies.checkpoint import CONFIG, CheckpointConfig, read_config, read_tokenizer
from vla_ros.policies.layout import Layout
from vla_ros.policies.text import build_tokenizer
from vla_ros.policies.weights import read_weights
from vla_ros.training.config import TrainingConfig
from vla_ros.training.state import STATE_FILE


def starting_point(out: Path, resume: bool, init: str) -> Path | None:
    """Returns the checkpoint that a training goes on from: its own last one, that of `init`, or none.

    Raises:
        ConfigError: there is nothing to resume. PolicyError: no such checkpoint.
    """
    if not resume:
        return find_checkpoint(init) if init else None
    if not (out / STATE_FILE).is_file():
        raise ConfigError(f"{out / STATE_FILE}: no such file; there is nothing to resume: leave --resume out")
    return out / "latest"


def inherited_layouts(start: Path | None, config: TrainingConfig) -> dict[str, Layout]:
    """Returns the robots of the checkpoint `start`, which the network will still drive, with the normalisation that its weights know.

    Raises:
        ConfigError: another system, other chunks, or other cameras of a robot than `config` has.
    """
    if start is None:
        return {}
    stored = read_config(start)
    wanted, found = ((c.system, c.horizon, c.dt_s) for c in (config, stored))
    if wanted != found:
        raise ConfigError(f"{start / CONFIG}: system, horizon and dt_s are {found}, of this training {wanted}: make them the same")
    for source in config.sources:
        layout = stored.layouts.get(source.embodiment)
        if layout is not None and layout.cameras != tuple(source.cameras):
            there, here = ", ".join(layout.cameras), ", ".join(source.cameras)
            raise ConfigError(f"{start / CONFIG}: {source.embodiment} has the cameras {there}, of this training {here}: make them the same")
    return dict(stored.layouts)


def tokenizer_of(start: Path | None, prompts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer of the checkpoint `start`, or without one a new one of all words in `prompts`.

    Raises:
        ConfigError: the checkpoint's does not know all the words.
    """
    new = build_tokenizer(prompts)
    if start is None:
        return new
    tokenizer = read_tokenizer(start)
    unknown = sorted(new.get_vocab().keys() - tokenizer.get_vocab().keys())
    if unknown:
        listed = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise ConfigError(f"{start} does not know the words {listed}: train from scratch, or on tasks and robots that it can name")
    return tokenizer


def load_weights(network: nn.Module, start: Path, config: CheckpointConfig) -> None:
    """Gives `network` the weights of the checkpoint `start`.

    Raises:
        ConfigError: the checkpoint has other sizes than `config` (for the rest see `inherited_layouts`).
        PolicyError: it cannot be read.
    """
    wanted, found = config.network, read_config(start).network
    differing = [name for name in wanted | found if wanted.get(name) != found.get(name) and name not in ("seed", "teacher")]
    if differing:
        values = "; ".join(f"{name}: {wanted.get(name)!r}, there {found.get(name)!r}" for name in differing)
        raise ConfigError(f"{start / CONFIG} is another network than the configuration's ({values})")
    read_weights(start, network)


def configure_stage(network: nn.Module, stage: str, tokenizer: Tokenizer) -> None:
    """Makes `network` ready for a stage of its training. Raises ConfigError: it has no such stage, or none at all."""
    if not stage:
        return
    if not hasattr(network, "configure_stage"):
        raise ConfigError(f"stage: '{stage}', but {type(network).__name__} is not trained in stages: leave `stage` out")
    network.configure_stage(stage, tokenizer)
