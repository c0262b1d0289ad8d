"""A window of observations: who sees whom in it, what is kept of it during a rollout, how much of it a training step shows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.vita_vla.channels import Channels


def sight(steps: Tensor, acting: Tensor, window: int, causal: bool) -> Tensor:
    """Returns bool [N, N]: which key (column) each query (row) sees.

    A token sees what was observed at its own step and at the `window` - 1 steps before. An action token is seen by nobody but itself, so
    what it holds changes no other token.

    Args:
        steps: int64 [N], when each token was observed.
        acting: bool [N], which of them are action tokens; those of a step come behind its observation.
        window: in steps.
        causal: whether the tokens of one step see only those before them, as in a language model.
    """
    age = steps[:, None] - steps
    seen = (age >= 0) & (age < window) & ~acting
    if causal:
        seen = seen.tril()
    return seen | torch.eye(len(steps), dtype=torch.bool, device=steps.device)


def apart_from_padding(seen: Tensor, real: Tensor) -> Tensor:
    """bool [N, N] of `sight` -> [B, N, N]: nobody sees what is not `real` [B, N], but each row itself: a blind one would be NaN."""
    return seen & (real[:, None] | torch.eye(len(seen), dtype=torch.bool, device=seen.device))


def tokens_of(steps: int, observed: int, acted: int, first_acting: int = 0, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Returns `steps` and `acting` (see `sight`) of observations of `observed` tokens, each followed by `acted` action tokens.

    Steps before `first_acting` have none.
    """
    counts = [observed + (acted if step >= first_acting else 0) for step in range(steps)]
    numbers = torch.cat([torch.full((count,), step, device=device) for step, count in enumerate(counts)])
    acting = torch.cat([torch.arange(count, device=device) >= observed for count in counts])
    return numbers, acting


def layout_of(layouts: Mapping[str, Layout], inputs: Inputs) -> Layout:
    """Raises PolicyError: an embodiment that the network was not made for, or another number of images than it has cameras."""
    if inputs.embodiment not in layouts:
        raise PolicyError(f"embodiment {inputs.embodiment!r}: the network was made for others; {did_you_mean(inputs.embodiment, layouts)}")
    layout = layouts[inputs.embodiment]
    if inputs.images.shape[-4] != len(layout.cameras):
        raise PolicyError(f"{inputs.embodiment}: {inputs.images.shape[-4]} images, expected {', '.join(layout.cameras)}")
    return layout


def targets_of(batch: Batch, channels: Channels) -> tuple[Tensor, Tensor]:
    """See `Channels.targets`. Raises PolicyError: there are no actions."""
    if batch.actions is None:
        raise PolicyError("a training batch needs actions [B, T, D]")
    return channels.targets(batch.actions, batch.embodiment)


def chosen_steps(inputs: Inputs, window: int, training: bool) -> int:
    """How many of a batch's newest observations to show: while training a random number of those there are."""
    there = min(window, inputs.images.shape[1] if inputs.images.ndim == 6 else 1)
    return int(torch.randint(1, there + 1, ())) if training else there


class Memory:
    """The last `window` observations of a rollout, or of several that go on together: their tokens, [B, n, width] each."""

    def __init__(self, window: int) -> None:
        self._window = window
        self.reset()

    def reset(self) -> None:
        self._kept: list[Tensor] = []
        self._owner = ""

    def add(self, observed: Tensor, embodiment: str) -> Tensor:
        """Returns what is remembered with `observed`, [B, W, n, width]. Raises PolicyError: it is of another rollout."""
        if self._kept:
            check_rollout(len(self._kept[0]), self._owner, len(observed), embodiment)
        self._owner = embodiment
        self._kept = [*self._kept, observed.detach()][-self._window :]
        return torch.stack(self._kept, dim=1)


def check_rollout(count: int, owner: str, new_count: int, embodiment: str) -> None:
    """Raises PolicyError when observations do not continue a history of `count` rollouts of `owner`."""
    if (count, owner) != (new_count, embodiment):
        raise PolicyError(f"the history holds {count} x {owner}, now come {new_count} x {embodiment}: call reset() before another rollout")
