"""The memory of a checkpoint: `memory.safetensors`, whose head says in plain JSON whose it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vla_ros.core.errors import PolicyError
from vla_ros.policies.mol_msm.stages import STAGES

if TYPE_CHECKING:
    from torch import Tensor

    from vla_ros.policies.mol_msm.memory import Memory

MEMORY = "memory.safetensors"
_TENSORS = ("keys", "chunks", "episodes")
_FIRST_VALUES = 256  # of each tensor: enough to tell two trainings apart, and quick for billions of weights


@dataclass(frozen=True)
class Note:
    """Whose a memory is.

    Args:
        stage: a name of `stages.STAGES`, in which it was written; one that remembers nothing leaves an empty memory.
        embodiment, channels, horizon: of the chunks.
        key_width: of the keys.
        normalization: `digest` of the quantiles that the chunks are normalised with.
        backbone: `digest` of the weights that made the keys.
    """

    stage: str
    embodiment: str
    channels: tuple[str, ...]
    horizon: int
    key_width: int
    normalization: str
    backbone: str


_CAUSES = {
    "normalization": "its chunks are normalised with other quantiles",
    "backbone": "its keys were made by other weights",
}


def digest(value: object) -> str:
    """Returns 16 hexadecimal digits of a JSON value, or of tensors by name."""
    state = hashlib.sha256()
    if isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in value.values()):
        for name, tensor in sorted(value.items()):
            state.update(f"{name} {tuple(tensor.shape)}".encode())
            state.update(tensor.detach().flatten()[:_FIRST_VALUES].float().cpu().numpy().tobytes())
    else:
        state.update(json.dumps(value, sort_keys=True).encode())
    return state.hexdigest()[:16]


def write_memory(folder: Path, memory: Memory, note: Note) -> None:
    """Writes the entries, the oldest first; the file appears whole or not at all.

    Raises:
        PolicyError: there are none, in a stage that remembers.
    """
    if not len(memory) and STAGES[note.stage].memory:
        raise PolicyError(f"{folder / MEMORY}: the memory is empty: train in the stage `skills` before it is saved")
    new = folder / f".{MEMORY}.new"
    tensors = dict(zip(_TENSORS, memory.oldest_first(), strict=True))
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, {"note": json.dumps(asdict(note))})
        new.chmod(0o644)
        new.replace(folder / MEMORY)
    finally:
        new.unlink(missing_ok=True)


def open_memory(folder: Path) -> tuple[dict[str, Tensor], Note]:
    """Returns keys [N, K], chunks [N, H, A] and episodes int64 [N], and whose they are.

    Raises:
        PolicyError: the file is missing, broken or empty.
    """
    path = folder / MEMORY
    if not path.is_file():
        raise PolicyError(f"{path}: no such file; restore it from the checkpoint's source, or set network.memory: 0 to do without a memory")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # What it hands out is a view of the file, which a training may write over.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a dict
        values = json.loads(metadata["note"])
        if not isinstance(values, dict) or set(values) != {item.name for item in fields(Note)}:
            raise ValueError(f"its note says {values!r:.80}")
        note = Note(**{**values, "channels": tuple(values["channels"])})
        remembers = STAGES[note.stage].memory
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyError(f"{path}: no memory that can be read ({type(error).__name__}: {error}): copy the file again") from error
    _check(path, tensors, note)
    if remembers and not len(tensors["keys"]):
        raise PolicyError(f"{path}: the memory is empty; restore the file, or set network.memory: 0 to do without a memory")
    return tensors, note


def _check(path: Path, tensors: Mapping[str, Tensor], note: Note) -> None:
    if set(tensors) != set(_TENSORS):
        raise PolicyError(f"{path}: holds {', '.join(tensors) or 'nothing'}, expected {', '.join(_TENSORS)}: copy the file again")
    count = len(tensors["keys"]) if tensors["keys"].ndim else 0
    shapes = {"keys": (count, note.key_width), "chunks": (count, note.horizon, len(note.channels)), "episodes": (count,)}
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != (torch.int64 if name == "episodes" else torch.float32):
            raise PolicyError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {shape}: copy the file again")
        if not tensor.isfinite().all():
            raise PolicyError(f"{path}: {name} holds NaN or infinite values: the training diverged, use an older checkpoint")


def read_memory(folder: Path, memory: Memory, note: Note) -> str:
    """Fills `memory` with what was written and returns the stage in which it was.

    Raises:
        PolicyError: see `open_memory`; or there are entries and it is not the memory that `note` describes.
    """
    path = folder / MEMORY
    tensors, found = open_memory(folder)
    memory.clear()
    if not len(tensors["keys"]):
        return found.stage
    for name in (item.name for item in fields(Note) if item.name != "stage"):
        value, wanted = getattr(found, name), getattr(note, name)
        if value != wanted:
            cause = _CAUSES.get(name, f"it has {name} {value}, the checkpoint {wanted}")
            raise PolicyError(f"{path}: a memory of another checkpoint: {cause}; restore the file that belongs to these weights")
    if len(tensors["keys"]) > memory.capacity:
        raise PolicyError(f"{path}: {len(tensors['keys'])} entries; network.memory = {memory.capacity} is too small: raise it")
    memory.push(*(tensors[name] for name in _TENSORS))
    return found.stage
