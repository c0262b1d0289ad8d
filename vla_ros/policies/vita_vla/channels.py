"""An embodiment's numbers as VITA-VLA and its teacher take them: arms and grippers apart, each embodiment's own among those of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.columns import shared_columns
from vla_ros.policies.layout import POSE_FEATURES, Layout


class Channels:
    """Splits states and actions of every embodiment of `layouts`, by slices alone: nothing waits for the host.

    Args:
        layouts: those with the same channels share their columns.
        open_above: the normalised finger width above which a gripper counts as open; a block between the fingers stays below.
    """

    def __init__(self, layouts: Mapping[str, Layout], open_above: float) -> None:
        self._open_above, self._arms = open_above, {name: layout.arms for name, layout in layouts.items()}
        self._spans = {name: _spans(layout) for name, layout in layouts.items()}
        features = {name: sum(stop - start for start, stop in spans) for name, spans in self._spans.items()}
        self.arm_state = shared_columns({name: (layout.state, features[name]) for name, layout in layouts.items()})
        self.width_state = shared_columns({name: (layout.state, len(layout.arms)) for name, layout in layouts.items()})
        self.arms = shared_columns({name: (layout.channels, len(layout.channels) - len(layout.arms)) for name, layout in layouts.items()})
        self.grippers = shared_columns({name: (layout.channels, len(layout.arms)) for name, layout in layouts.items()})

    def state(self, features: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """[..., F] -> the arms' own numbers [..., A] and each gripper one-hot as (open, closed) [..., 2 G].

        Raises:
            PolicyError: an unknown embodiment, or another number of features.
        """
        self.arm_state.of(embodiment)
        spans = self._spans[embodiment]
        if features.shape[-1] != spans[-1][1] + 1:
            raise PolicyError(f"{embodiment}: {features.shape[-1]} features of the state, expected {spans[-1][1] + 1}")
        arms = torch.cat([features[..., start:stop] for start, stop in spans], dim=-1)
        opened = torch.cat([features[..., stop : stop + 1] for _, stop in spans], dim=-1) > self._open_above
        own = [self.width_state.spread(side.to(features.dtype), embodiment) for side in (opened, ~opened)]
        return self.arm_state.spread(arms, embodiment), torch.cat(own, dim=-1)

    def targets(self, actions: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """[..., D] -> the arms' targets [..., A] in [-1, 1] and 1 where a gripper closes [..., G], else 0."""
        self.arms.of(embodiment)
        arms = self._arms[embodiment]
        closing = torch.cat([actions[..., arm.gripper : arm.gripper + 1] for arm in arms], dim=-1) > 0
        return torch.cat([actions[..., arm.columns] for arm in arms], dim=-1), closing.to(actions.dtype)

    def own(self, arms: Tensor, closing: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """Picks the embodiment's columns out of what the heads say for all."""
        return arms[..., self.arms.of(embodiment)], closing[..., self.grippers.of(embodiment)]

    def actions(self, arms: Tensor, closing: Tensor, embodiment: str) -> Tensor:
        """The inverse of `targets`: own arms and own logits of closing -> [..., D], grippers in -1 .. 1."""
        self.arms.of(embodiment)
        moved = arms.split([arm.motion for arm in self._arms[embodiment]], dim=-1)
        shut = (2 * closing.sigmoid() - 1).split(1, dim=-1)
        return torch.cat([part for arm in zip(moved, shut, strict=True) for part in arm], dim=-1)


def _spans(layout: Layout) -> list[tuple[int, int]]:
    """From where to where each arm's features stand; its finger width comes next."""
    spans, start = [], 0
    for arm in layout.arms:
        stop = start + (POSE_FEATURES if arm.pose else arm.motion)
        spans.append((start, stop))
        start = stop + 1
    return spans


class StateEncoder(nn.Module):
    """Arm and one-hot gripper each through a Linear, both through a third: one token."""

    def __init__(self, channels: Channels, width: int) -> None:
        super().__init__()
        self.arm = nn.Linear(channels.arm_state.width, width)
        self.gripper = nn.Linear(2 * channels.width_state.width, width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, arms: Tensor, grippers: Tensor) -> Tensor:
        """[..., A] and [..., 2 G] -> [..., width]."""
        with torch.autocast(arms.device.type, enabled=False):  # bfloat16 cannot tell one degree from the next
            dtype = self.arm.weight.dtype
            return self.out(torch.cat([self.arm(arms.to(dtype)), self.gripper(grippers.to(dtype))], dim=-1))
