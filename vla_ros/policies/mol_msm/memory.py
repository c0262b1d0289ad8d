"""The meta-skill memory: a queue of (what a scene looked like to the backbone, the chunk that worked), and how a chunk asks it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.mol_msm.attention import attend

_BLOCK_NUMBERS = 131_072  # of the queue that are compared at once: 512 kB, which stays in a core's cache


class Retrieved(NamedTuple):
    """The nearest entries, nearest first.

    Args:
        chunks: [B, R, H, A].
        distances: [B, R], infinite where there are fewer than R; what stands in `chunks` there means nothing.
        episodes: int64 [B, R].
    """

    chunks: Tensor
    distances: Tensor
    episodes: Tensor


def l1_distances(queries: Tensor, keys: Tensor) -> Tensor:
    """[B, K] and [N, K] -> [B, N]. Block by block in a CPU's cache takes two thirds of the time of `torch.cdist`."""
    if keys.device.type != "cpu":
        return torch.cdist(queries, keys, p=1)
    size = max(1, _BLOCK_NUMBERS // keys.shape[1])
    difference, out = keys.new_empty(size, keys.shape[1]), keys.new_empty(len(queries), len(keys))
    for start in range(0, len(keys), size):
        block = keys[start : start + size]
        part = difference[: len(block)]
        for row, query in zip(out, queries, strict=True):
            torch.sum(torch.sub(block, query, out=part).abs_(), -1, out=row[start : start + size])
    return out


class Memory(nn.Module):
    """A first-in, first-out queue in a ring. It has no weights: it travels with the network's device, and in a file of its own.

    Args:
        capacity: entries, beyond which the oldest are forgotten.
        key_width: K.
        horizon, channels: of a chunk, normalised.
    """

    def __init__(self, capacity: int, key_width: int, horizon: int, channels: int) -> None:
        super().__init__()
        self.capacity = capacity
        for name, shape, dtype in (("keys", (key_width,), None), ("chunks", (horizon, channels), None), ("episodes", (), torch.int64)):
            self.register_buffer(name, torch.zeros(capacity, *shape, dtype=dtype), persistent=False)
        self.pushed = 0  # ever

    def __len__(self) -> int:
        return min(self.pushed, self.capacity)

    def clear(self) -> None:
        self.pushed = 0

    def push(self, keys: Tensor, chunks: Tensor, episodes: Tensor) -> None:
        """Adds n entries [n, K], [n, H, A], int64 [n], the last one the newest."""
        fresh = max(0, len(keys) - self.capacity)  # the first of more than fit would be forgotten at once
        places = (self.pushed + torch.arange(fresh, len(keys), device=self.keys.device)) % self.capacity
        for queue, values in ((self.keys, keys), (self.chunks, chunks), (self.episodes, episodes)):
            queue[places] = values[fresh:].detach().to(queue)
        self.pushed += len(keys)

    def oldest_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns keys, chunks and episodes in the order in which they came."""
        count = len(self)
        order = (self.pushed - count + torch.arange(count, device=self.keys.device)) % self.capacity
        return self.keys[order], self.chunks[order], self.episodes[order]

    def newest_episode(self) -> int:
        """The highest number that an episode has; -1 when it is empty."""
        return int(self.episodes[: len(self)].max()) if len(self) else -1

    @torch.no_grad()
    def nearest(self, keys: Tensor, count: int, exclude: Tensor | None = None) -> Retrieved:
        """Returns the `count` entries of the least L1 distance to each of `keys` [B, K].

        Args:
            exclude: int64 [B], an episode whose entries are not for this one, or None.
        """
        filled = len(self)
        distances = l1_distances(keys.detach().to(self.keys), self.keys[:filled])
        if exclude is not None:
            distances.masked_fill_(self.episodes[:filled] == exclude.to(self.episodes)[:, None], torch.inf)
        distances = functional.pad(distances, (0, max(0, count - filled)), value=torch.inf)
        found, places = distances.topk(count, largest=False)
        places = places.clamp(max=self.capacity - 1)
        return Retrieved(self.chunks[places], found, self.episodes[places])


class SkillModule(nn.Module):
    """Cross-attention from a chunk's tokens to the rows of retrieved chunks, added to them; without any it adds nothing."""

    def __init__(self, width: int, heads: int, horizon: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.read_chunk = nn.Linear(channels, width)
        self.rows = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.norm, self.norm_skills = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, retrieved: Retrieved) -> Tensor:
        """[B, H, d] -> [B, H, d]."""
        skills = self.norm_skills(self.read_chunk(retrieved.chunks) + self.rows).flatten(1, 2)
        there = retrieved.distances.isfinite()
        # Where there is nothing, all is seen and then thrown away: a softmax over nothing is NaN, also in the gradient.
        nothing = ~there.any(1, keepdim=True)
        mask = (there | nothing).repeat_interleave(len(self.rows), 1)
        found = attend(self.query(self.norm(x)), *self.key_value(skills).chunk(2, -1), self.heads, mask)
        return x + self.output(found).masked_fill(nothing[..., None], 0.0)
