"""A training's state on disk: tensors by part, an optimiser and a few notes in one safetensors file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    tensors = apart({f"{part}.{name}": tensor for part, values in parts.items() for name, tensor in values.items()})
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
        problem = " ".join(str(error).split())  # torch's go over many lines
        raise ConfigError(
            f"{path}: does not fit this configuration ({problem}): train into another --out; --init starts from weights alone"
        ) from error


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own, as safetensors wants them: tied weights are one tensor with two names."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if storage in memory else plain
        memory.add(storage)
    return found


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """The optimiser's memory of each parameter; `names` are those of its parameters, in their order."""
    state, names = optimiser.state_dict()["state"], list(names)
    return {f"{names[index]}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; rates stay those of `optimiser`. Raises KeyError: memory of a parameter that it has not."""
    index, state = {name: index for index, name in enumerate(names)}, {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        state.setdefault(index[parameter], {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
