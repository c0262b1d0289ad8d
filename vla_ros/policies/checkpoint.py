"""A checkpoint is one folder: config.json, model.safetensors, tokenizer.json. Loading is strict; no pickle is ever opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.layout import Layout
from vla_ros.policies.navigation import CHANNELS as WAYPOINT
from vla_ros.policies.navigation import NavigationLayout

if TYPE_CHECKING:  # a rig with the scripted policy need not wait for torch
    from tokenizers import Tokenizer
    from torch import Tensor

_LARGEST_PX, _LONGEST = 2048, 1000
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class CheckpointConfig:
    """What config.json says.

    Args:
        system: a name of `policies.SYSTEMS`.
        preset: size of the network, for the reader.
        layouts: by embodiment that it can drive, see `layout.Layout`.
        image: {"width", "height"} in px that every frame is shrunk to.
        horizon, dt_s: rows of a chunk and the time between them.
        network: the system's own sizes.
        training: how it was made (command, revision, data, measured success); not read by the policy.
    """

    system: str
    preset: str
    layouts: dict[str, Layout]
    image: dict[str, int]
    horizon: int
    dt_s: float
    network: dict[str, object]
    training: dict[str, object] = field(default_factory=dict)


def read_config(folder: Path) -> CheckpointConfig:
    """Reads config.json. Raises PolicyError for a missing folder or file, broken JSON, missing or unknown keys."""
    path = folder / CONFIG
    if not path.is_file():
        raise PolicyError(f"{path}: no such file; a checkpoint is a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets without end
        raise PolicyError(f"{path}: not JSON ({error}): restore the file or train again") from None
    if not isinstance(values, dict):
        raise PolicyError(f"{path}: holds a {type(values).__name__}, expected an object")
    names = [item.name for item in fields(CheckpointConfig)]
    for key in values:
        if key not in names:
            raise PolicyError(f"{path}: unknown key {key!r}; {did_you_mean(key, names)}")
    missing = [name for name in names if name not in values and name != "training"]
    if missing:
        raise PolicyError(f"{path}: lacks {', '.join(missing)}: restore the file or train again")
    values["layouts"] = _layouts(path, values["layouts"])
    config = CheckpointConfig(**values)
    for problem in _problems(config):
        raise PolicyError(f"{path}: {problem}")
    return config


def _layouts(path: Path, values: object) -> dict[str, Layout]:
    names = {"cameras", "state", "channels", "normalization"}
    if not isinstance(values, dict) or not values:
        raise PolicyError(f"{path}: layouts {values!r:.80}, expected an object by embodiment: restore the file or train again")
    layouts = {}
    for embodiment, value in values.items():
        if not isinstance(value, dict) or set(value) != names:
            raise PolicyError(f"{path}: layouts.{embodiment} is {value!r:.80}, expected {', '.join(sorted(names))}")
        lists = {}
        for name in ("cameras", "state", "channels"):
            if not isinstance(value[name], list) or not all(isinstance(item, str) for item in value[name]):
                raise PolicyError(f"{path}: layouts.{embodiment}.{name} = {value[name]!r:.80}, expected a list of names")
            lists[name] = tuple(value[name])
        if not isinstance(value["normalization"], dict):
            raise PolicyError(f"{path}: layouts.{embodiment}.normalization = {value['normalization']!r:.80}, expected an object")
        kind = NavigationLayout if lists["channels"] == WAYPOINT else Layout
        layouts[embodiment] = kind(embodiment, **lists, normalization=value["normalization"])
    return layouts


def _problems(config: CheckpointConfig) -> Iterator[str]:
    for name in ("system", "preset"):
        if not isinstance(getattr(config, name), str):
            yield f"{name} = {getattr(config, name)!r:.80}, expected a name"
    for name in ("network", "training", "image"):
        if not isinstance(getattr(config, name), dict):
            yield f"{name} = {getattr(config, name)!r:.80}, expected an object"
    sizes = config.image.values()
    if set(config.image) != {"width", "height"} or not all(type(size) is int and 32 <= size <= _LARGEST_PX for size in sizes):
        yield f"image {config.image}, expected width and height of 32 .. {_LARGEST_PX} px"
    if type(config.horizon) is not int or not 1 <= config.horizon <= _LONGEST:
        yield f"horizon {config.horizon!r:.80}, expected 1 .. {_LONGEST}"
    if type(config.dt_s) not in (int, float) or not 0.001 <= config.dt_s <= 10:
        yield f"dt_s {config.dt_s!r:.80}, expected 0.001 .. 10 s"


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads tokenizer.json. Raises PolicyError when it is missing or broken."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise PolicyError(f"{path}: no such file; restore it from the checkpoint's source")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare one
        raise PolicyError(f"{path}: not a tokenizer ({error}): restore the file") from error


def write_checkpoint(folder: Path, config: CheckpointConfig, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Writes the three files; each appears whole or not at all, so a full disk or a kill leaves the older file usable."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f".{name}.new" for name in (CONFIG, WEIGHTS, TOKENIZER)}
    try:
        new[CONFIG].write_text(json.dumps(_plain(config), indent=1) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, new[WEIGHTS])
        tokenizer.save(str(new[TOKENIZER]))
        for name, path in new.items():
            path.chmod(0o644)  # safetensors writes 0600, which another user of the rig could not read
            path.replace(folder / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies every file of a checkpoint, each whole or not at all: whoever runs the one in `target` has its weights mapped into memory."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        new = target / f".{path.name}.new"
        try:
            shutil.copyfile(path, new)
            new.replace(target / path.name)
        finally:
            new.unlink(missing_ok=True)


def _plain(config: CheckpointConfig) -> dict[str, object]:
    values = asdict(config)
    for layout in values["layouts"].values():
        del layout["embodiment"]  # it is the key
    return values
