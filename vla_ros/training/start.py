"""Where a training starts: the weights of a checkpoint, or none, and what of the network learns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from vla_ros.core.errors import ConfigError
from vla_ros.policies import find_checkpoint
from vla_ros.policies.checkpoint import CONFIG, CheckpointConfig, read_config, read_tokenizer
from vla_ros.policies.text import UNKNOWN_ID, build_tokenizer, split_words
from vla_ros.policies.weights import read_weights


def tokenizer_of(init: str, prompts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer of the checkpoint `init`, or without one a new one of all words in `prompts`.

    Raises:
        ConfigError: the checkpoint's knows too few of the words.
    """
    if not init:
        return build_tokenizer(prompts)
    folder = find_checkpoint(init)
    tokenizer = read_tokenizer(folder)
    words = {word for prompt in prompts for word in split_words(tokenizer, prompt)} if tokenizer.pre_tokenizer else set()
    unknown = sorted(word for word in words if tokenizer.encode(word).ids == [UNKNOWN_ID])
    if unknown:
        listed = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise ConfigError(f"init: {folder} does not know the words {listed}: leave `init` out, or train on tasks that it can name")
    return tokenizer


def load_weights(network: nn.Module, init: str, config: CheckpointConfig) -> None:
    """Gives `network` the weights of the checkpoint `init`.

    Raises:
        ConfigError: the checkpoint is of another system or of other sizes than `config`.
        PolicyError: it cannot be read.
    """
    folder = find_checkpoint(init)
    stored = read_config(folder)
    wanted, found = ({"system": c.system, "horizon": c.horizon, **c.network} for c in (config, stored))
    differing = [name for name in wanted | found if wanted.get(name) != found.get(name) and name not in ("seed", "teacher")]
    if differing:
        values = "; ".join(f"{name}: {wanted.get(name)!r}, there {found.get(name)!r}" for name in differing)
        raise ConfigError(f"init: {folder / CONFIG} is another network than the configuration's ({values})")
    read_weights(folder, network)


def configure_stage(network: nn.Module, stage: str, tokenizer: Tokenizer) -> None:
    """Makes `network` ready for a stage of its training. Raises ConfigError: it has no such stage, or none at all."""
    if not stage:
        return
    if not hasattr(network, "configure_stage"):
        raise ConfigError(f"stage: '{stage}', but {type(network).__name__} is not trained in stages: leave `stage` out")
    network.configure_stage(stage, tokenizer)


def check_out(out: Path, resume: bool, init: str) -> None:
    """Raises ConfigError: `out` can be resumed or started from other weights, not both."""
    if resume and init:
        raise ConfigError(f"--resume continues {out} with its own weights: leave --init {init} out, or --resume and take another --out")
