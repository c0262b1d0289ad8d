"""Action heads: the hidden state of [LRN] -> a normalised chunk. `HEADS` is the table."""

from __future__ import annotations

from torch import Tensor, nn


class MlpHead(nn.Module):
    """One-step continuous formulation: [B, hidden] -> pose [B, horizon, pose_width] in [-1, 1] units and gripper logits [B, horizon]."""

    def __init__(self, hidden_size: int, horizon: int, pose_width: int) -> None:
        super().__init__()
        self.horizon, self.pose_width = horizon, pose_width
        self.layers = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, horizon * (pose_width + 1)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.layers(hidden).float().unflatten(-1, (self.horizon, self.pose_width + 1))
        return rows[..., :-1], rows[..., -1]


HEADS = {"mlp": MlpHead}
