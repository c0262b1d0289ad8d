"""model.safetensors into a network. Its header tells how large the network may be before anything of that size is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from vla_ros.core.errors import PolicyError
from vla_ros.policies.checkpoint import WEIGHTS

Shapes = Mapping[str, tuple[int, ...]]
_CONSTRUCTORS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
# Numbers that a network may ask for beside its weights: tables that are computed, parts that are built and left out.
_SPARE = 2**24
_SHOWN = 3


class Allowance(TorchFunctionMode):
    """While it is entered, torch's constructors may ask for `left` numbers in all; what would exceed it raises MemoryError instead.

    Sizes that are fine one by one may be terabytes together. (To build on the meta device would say so too, but costs the first time in
    a process a second and 70 MB, as torch then imports its compiler. It is used for the message only.)
    """

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _CONSTRUCTORS and self.left >= 0:
            self.left -= _count(kwargs.get("size", args))
            if self.left < 0:
                raise MemoryError("larger than its weights")
        return function(*args, **kwargs)


def _count(size: tuple[object, ...]) -> int:
    """Of a constructor's positional arguments: numbers, or a tuple of them (behind which may stand what fills it)."""
    sizes = size[0] if size and isinstance(size[0], tuple | list) else size
    return math.prod(int(item) for item in sizes)


def load_network(folder: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """Returns `make()` with the weights of `folder`, strictly.

    Args:
        folder: the checkpoint.
        make: builds the network that config.json describes; raises PolicyError when it cannot be built.

    Raises:
        PolicyError: model.safetensors is missing, truncated or a pickle, its names or shapes are not those of the network, or it holds NaN.
    """
    path = folder / WEIGHTS
    shapes = _read_shapes(path)
    allowance = Allowance(2 * sum(map(math.prod, shapes.values())) + _SPARE)
    try:
        with allowance:
            network = make()
    except PolicyError:
        if allowance.left >= 0:
            raise
        with torch.device("meta"):
            _compare(path, shapes, make())
        raise
    read_weights(folder, network)
    return network


def read_weights(folder: Path, network: nn.Module) -> None:
    """Copies the weights of `folder` into `network`, strictly. Raises PolicyError: see `load_network`."""
    path = folder / WEIGHTS
    _compare(path, _read_shapes(path), network)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise PolicyError(f"{path}: {name} holds NaN or infinite values: the training diverged, use an older checkpoint")
    network.load_state_dict(tensors)


def _read_shapes(path: Path) -> Shapes:
    if not path.is_file():
        pickles = sorted(item.name for item in path.parent.glob("*") if item.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        hint = f"; {', '.join(pickles)} is a pickle, which is never loaded: convert it to safetensors" if pickles else ""
        raise PolicyError(f"{path}: no such file{hint}")
    with path.open("rb") as stream:
        head = stream.read(4)
    if head[:2] in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:
        raise PolicyError(f"{path}: a pickle (torch.save) with a wrong name, which is never loaded: convert it to safetensors")
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise PolicyError(f"{path}: {path.stat().st_size} bytes, truncated or not safetensors ({error}): copy the file again") from error


def _compare(path: Path, found: Shapes, network: nn.Module) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing, foreign = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or foreign:
        raise PolicyError(
            f"{path}: missing {len(missing)} {missing[:_SHOWN]}, foreign {len(foreign)} {foreign[:_SHOWN]}: "
            "not the weights of this config.json"
        )
    wrong = [f"{name} is {found[name]}, expected {shape}" for name, shape in expected.items() if found[name] != shape]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise PolicyError(f"{path}: {'; '.join(wrong[:_SHOWN])}{more}: not the weights of this config.json")
