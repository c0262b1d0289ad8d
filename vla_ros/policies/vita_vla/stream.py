"""A rollout through the language model: each observation is read once, its keys and values stay while it is in the window.

What leaves the window is evicted, and nothing is computed again. The steps that stay have seen the evicted ones when they came, so the
result is that of one pass over the whole rollout in which every token sees `window` steps (`history.sight`), and not that of a pass over
the last `window` observations alone: that would cost `window` times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_ros.policies.vita_vla.backbones import Backbone
from vla_ros.policies.vita_vla.history import apart_from_padding, check_rollout, sight, tokens_of


def places(mask: Tensor, acted: int) -> tuple[Tensor, Tensor]:
    """Places in the text within one step, without gaps at padding, action tokens last.

    Args:
        mask: bool [B, n], False at padding.
        acted: number of action tokens.

    Returns:
        int64 [B, n + acted], and how many places the step takes [B].
    """
    real = torch.cat([mask, mask.new_ones(len(mask), acted)], dim=1).long()
    return (real.cumsum(1) - 1).clamp(min=0), real.sum(1)


class Stream:
    """Keys and values of the last `window` - 1 observations of a rollout, or of several that go on together.

    Places in the text are counted on from its start: rotary angles in float32 are good to 0.01 rad for about 100 000 places.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self.reset()

    def reset(self) -> None:
        """Forgets the rollout."""
        self._cache, self._owner = None, ""
        self._mask = self._start = torch.zeros(0)

    def advance(self, backbone: Backbone, observed: Tensor, mask: Tensor, acting: Tensor, embodiment: str) -> Tensor:
        """Reads one more observation and returns the states of its action tokens, [B, T, W].

        Args:
            backbone: the language model.
            observed: [B, n, W].
            mask: bool [B, n], False at padding.
            acting: [B, T, W], what the action tokens hold; they are not kept.
            embodiment: whose observation it is.

        Raises:
            PolicyError: it does not continue the rollout.
        """
        if self._cache is None:
            self._cache, self._owner = backbone.new_cache(), embodiment
            self._mask, self._start = mask[:, :0], mask.new_zeros(len(mask), dtype=torch.long)
        check_rollout(len(self._start), self._owner, len(mask), embodiment)
        count, acted = observed.shape[1], acting.shape[1]
        own = sight(*tokens_of(1, count, acted, device=mask.device), self._window, causal=True)
        now = apart_from_padding(own, torch.cat([mask, mask.new_ones(len(mask), acted)], dim=1))
        past = self._mask[:, None].expand(-1, count + acted, -1)
        offsets, taken = places(mask, acted)
        states = backbone.run(
            torch.cat([observed, acting], dim=1), torch.cat([past, now], dim=-1), self._start[:, None] + offsets, self._cache
        )
        self._mask = torch.cat([self._mask, mask], dim=1)
        self._start = self._start + taken
        self._evict(count)
        return states[:, count:]

    def _evict(self, count: int) -> None:
        """Drops the action tokens' keys and values, and of the observations all but the last `window` - 1."""
        stop = self._mask.shape[1]
        start = max(0, stop - (self._window - 1) * count)
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[:, :, start:stop], layer.values[:, :, start:stop]
        self._mask = self._mask[:, start:]
