"""What a VLA system is to the suite: a torch module that says what it predicts and what it loses. All the rest is shared.

`NetworkPolicy` runs one behind the policy protocol, `training.Trainer` trains one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Inputs:
    """B observations of one embodiment.

    For a network with a `window` above 1 `images` and `state` may have a window of consecutive observations, [B, W, C, 3, H, W] and
    [B, W, F] with the newest last; tokens and actions belong to that one. What a shorter window means is the network's own: RoboVLMs takes
    its first observation to have been there all the time, VITA-VLA and its teacher know no more than what is there.

    Args:
        embodiment: whose layout the numbers have.
        images: float [B, C, 3, H, W] in [-1, 1], in the order of the layout's cameras; None in a stage that learns without.
        state: float [B, F], normalised features.
        tokens: int64 [B, L], the prompt.
        prefix: float [B, P, D] or None: normalised rows that are executed whatever comes (real-time chunking), from row 0 on.
        prefix_weights: float [P] or None: how strongly each holds, 1 .. 0.
    """

    embodiment: str
    images: Tensor | None
    state: Tensor
    tokens: Tensor
    prefix: Tensor | None = None
    prefix_weights: Tensor | None = None


@dataclass(frozen=True)
class Batch(Inputs):
    """Training samples: `actions` float [B, T, D] in [-1, 1] (grippers -1 | 1).

    `objects` [B, O, 3] (NaN where an object is not on the table) and `roles` int64 [B, 2] (what to move, where to) serve the auxiliary
    losses of small backbones. `episode` int64 [B] numbers the demonstrations, over all embodiments.
    """

    actions: Tensor | None = None
    objects: Tensor | None = None
    roles: Tensor | None = None
    episode: Tensor | None = None


class Network(Protocol):
    """A `torch.nn.Module` besides. Made by `System(layouts, horizon, sizes)`, see `policies.SYSTEMS`.

    `visual_size` and `hidden_size` are the widths of what `loss` returns for the auxiliary losses, 0 where they have nothing to read.
    A network with a history has `window: int` besides, see `Inputs`. One that is trained in stages has `STAGES`, a mapping by name, and
    `configure_stage(stage: str, tokenizer: Tokenizer) -> None`, which says what learns (`requires_grad`) and raises ConfigError for a stage
    that it does not have, and may have `whole_trajectories: bool`: its batches have no images and actions to the end of the episode.
    One that keeps more than weights has `save_memory(folder)` and `load_memory(folder)`, of a checkpoint; the latter raises PolicyError.
    """

    visual_size: int
    hidden_size: int

    def __init__(self, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object]) -> None:
        """Builds it. Raises PolicyError for unknown or missing sizes."""

    @staticmethod
    def prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
        """The text that is tokenised (to `sizes["text_length"]` ids; `sizes["vocabulary"]` is how many there are)."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor | None]:
        """Returns the loss, its parts by name, and for the auxiliary losses visual features [B, V] and the hidden state [B, H]."""

    def predict(self, inputs: Inputs) -> Tensor:
        """Returns normalised actions [B, T, D]; a head with history adds this observation to it."""

    def reset(self) -> None:
        """Forgets the history and starts the noise anew."""


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same observations, or samples, with their tensors on `device`."""
    tensors = {field.name: value for field in fields(inputs) if isinstance(value := getattr(inputs, field.name), Tensor)}
    return replace(inputs, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def as_window(inputs: Inputs, window: int) -> tuple[Tensor, Tensor]:
    """Returns images [B, W, C, 3, H, W] and state [B, W, F], at most the last `window` observations. Raises PolicyError: other shapes."""
    images, state = inputs.images, inputs.state
    if images.ndim == 5:
        images, state = images[:, None], state[:, None]
    if images.ndim != 6 or state.ndim != 3 or state.shape[:2] != images.shape[:2]:
        raise PolicyError(
            f"images {tuple(inputs.images.shape)} with state {tuple(inputs.state.shape)}, expected [B, (W,) C, 3, H, W] and [B, (W,) F]"
        )
    return images[:, -window:], state[:, -window:]


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W] in [-1, 1]."""
    return images.movedim(-1, -3).float() / 127.5 - 1


def pixels_of(frames: list[np.ndarray]) -> Tensor:
    """Frames uint8 [H, W, 3] of one instant -> [1, C, 3, H, W]."""
    import torch

    return to_pixels(torch.from_numpy(np.stack(frames)))[None]
