"""Multi-section rotary positions (time, height, width), interleaved as in the Qwen backbones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AXES = 3
_SPATIAL_SHARE = 20 / 64  # of the frequencies turn with the height, as many with the width; time has the rest, and the slowest of all


class Rope(nn.Module):
    """Turns queries and keys by their positions. It has no weights.

    Args:
        head_size: even; two numbers a frequency.
        theta: base of the wave lengths.
    """

    def __init__(self, head_size: int, theta: float) -> None:
        super().__init__()
        self.frequencies, self.theta = head_size // 2, theta
        self.spatial = int(self.frequencies * _SPATIAL_SHARE)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [B, 3, N] -> cosine and sine, [B, 1, N, head_size / 2] each."""
        # Made anew each time: as a buffer it would become bfloat16 with the rest of the network.
        index = torch.arange(self.frequencies, device=positions.device)
        axis = torch.where(index < AXES * self.spatial, index % AXES, 0)
        turns = positions[:, axis].transpose(1, 2).float() * self.theta ** (-index.float() / self.frequencies)
        return turns.cos()[:, None], turns.sin()[:, None]


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turns x [B, heads, N, head_size] by `Rope.angles`."""
    cosine, sine = angles
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


def text_positions(mask: Tensor) -> Tensor:
    """Positions of a sequence without spatial structure: mask bool [B, N] -> int64 [B, 3, N], padding counts for nothing."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, None].expand(-1, AXES, -1)


def following(positions: Tensor, mask: Tensor, length: int) -> Tensor:
    """Positions [B, 3, length] of the tokens that come after a sequence with `positions` [B, 3, N] and `mask` [B, N]."""
    last = positions.masked_fill(~mask[:, None], -1).amax((1, 2))
    return (last[:, None] + 1 + torch.arange(length, device=mask.device))[:, None].expand(-1, AXES, -1)
