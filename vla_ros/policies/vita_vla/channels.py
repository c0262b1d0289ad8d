"""An embodiment's numbers as VITA-VLA and its teacher take them: arms and grippers apart, each embodiment's own among those of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.columns import shared_columns
from vla_ros.policies.layout import POSE_FEATURES, Layout


class Channels:
    """Splits states and actions of every embodiment of `layouts`.

    Args:
        layouts: those with the same channels share their columns.
        open_above: the normalised finger width above which a gripper counts as open; a block between the fingers stays below.
    """

    def __init__(self, layouts: Mapping[str, Layout], open_above: float) -> None:
        self._open_above = open_above
        self._features = {name: _features(layout) for name, layout in layouts.items()}
        self._grippers = {name: layout.grippers for name, layout in layouts.items()}
        counts = {name: tuple(map(len, indices)) for name, indices in self._features.items()}
        self.arm_state = shared_columns({name: (layout.state, counts[name][0]) for name, layout in layouts.items()})
        self.width_state = shared_columns({name: (layout.state, counts[name][1]) for name, layout in layouts.items()})
        self.arms = shared_columns({name: (layout.channels, len(layout.channels) - len(layout.arms)) for name, layout in layouts.items()})
        self.grippers = shared_columns({name: (layout.channels, len(layout.arms)) for name, layout in layouts.items()})

    def state(self, features: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """[..., F] -> the arms' own numbers [..., A] and each gripper one-hot as (open, closed) [..., 2 G].

        Raises:
            PolicyError: an unknown embodiment, or another number of features.
        """
        self.arm_state.of(embodiment)
        arms, widths = self._features[embodiment]
        if features.shape[-1] != len(arms) + len(widths):
            raise PolicyError(f"{embodiment}: {features.shape[-1]} features of the state, expected {len(arms) + len(widths)}")
        opened = features[..., widths] > self._open_above
        own = (self.width_state.spread(side.to(features.dtype), embodiment) for side in (opened, ~opened))
        return self.arm_state.spread(features[..., arms], embodiment), torch.cat(tuple(own), dim=-1)

    def targets(self, actions: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """[..., D] -> the arms' targets [..., A] in [-1, 1] and 1 where a gripper closes [..., G], else 0."""
        grippers = self._mask(embodiment, actions)
        return actions[..., ~grippers], (actions[..., grippers] > 0).to(actions.dtype)

    def own(self, arms: Tensor, closing: Tensor, embodiment: str) -> tuple[Tensor, Tensor]:
        """Picks the embodiment's columns out of what the heads say for all."""
        return arms[..., self.arms.of(embodiment)], closing[..., self.grippers.of(embodiment)]

    def actions(self, arms: Tensor, closing: Tensor, embodiment: str) -> Tensor:
        """The inverse of `targets`: own arms and own logits of closing -> [..., D], grippers in -1 .. 1."""
        grippers = self._mask(embodiment, arms)
        out = arms.new_empty(*arms.shape[:-1], len(grippers))
        out[..., ~grippers], out[..., grippers] = arms, 2 * closing.sigmoid() - 1
        return out

    def _mask(self, embodiment: str, near: Tensor) -> Tensor:
        self.arms.of(embodiment)
        return torch.from_numpy(self._grippers[embodiment]).to(near.device)


def _features(layout: Layout) -> tuple[list[int], list[int]]:
    """Indices of the arms' features, and of the finger widths."""
    arms, widths, start = [], [], 0
    for arm in layout.arms:
        count = POSE_FEATURES if arm.pose else arm.motion
        arms += range(start, start + count)
        widths.append(start + count)
        start += count + 1
    return arms, widths


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
