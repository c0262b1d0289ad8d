"""A training's state on disk: tensors by part, an optimiser and a few notes in one safetensors file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_ros.core.errors import ConfigError

STATE_FILE = "state.safetensors"
Parts = dict[str, dict[str, Tensor]]


def save_state(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, object]) -> None:
    """Writes the state next to the older one, then swaps them."""
    tensors = {f"{part}.{name}": tensor.contiguous() for part, values in parts.items() for name, tensor in values.items()}
    partial = folder / f".{STATE_FILE}.part"
    try:
        save_file(tensors, partial, {name: str(note) for name, note in notes.items()})
        partial.replace(folder / STATE_FILE)
    finally:
        partial.unlink(missing_ok=True)


def load_state(folder: Path, restore: Callable[[Parts, dict[str, str]], None]) -> None:
    """Hands what `save_state` wrote, the parts and the notes, to `restore`.

    Raises:
        ConfigError: there is none, or `restore` finds that it does not fit.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; there is nothing to resume: leave --resume out")
    parts: Parts = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = file.get_tensor(name)
            restore(parts, file.metadata())
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: does not fit this configuration ({error}): train into another --out") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory of each parameter, flat."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; rates stay those of `optimiser`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
