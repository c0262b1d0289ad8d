"""Heads that name the chunk at once: MLP, LSTM and transformer over the last [LRN]s, and bins for a backbone without a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.robo_vlms.bins import BINS, from_bins, to_bins


@dataclass(frozen=True)
class Seen:
    """What a head reads.

    Args:
        window: [B, W, hidden_size], the [LRN]s, the newest last.
        sequence, mask: [B, N, hidden_size] and bool [B, N]: every state of the newest observation.
        state: [B, state_width].
        columns: the embodiment's own among those of a row.
        grippers: bool [D], among the own ones.
    """

    window: Tensor
    sequence: Tensor
    mask: Tensor
    state: Tensor
    columns: slice
    grippers: Tensor


def continuous_loss(raw: Tensor, actions: Tensor, grippers: Tensor, motion_loss: str, gripper_weight: float) -> tuple[Tensor, dict]:
    """Regression of the motion, binary cross-entropy of the grippers.

    Args:
        raw: [B, T, D], motion as it is, grippers as logits of being closed.
        actions: [B, T, D] in [-1, 1]; a gripper above 0 is closed.
        grippers: bool [D].
    """
    losses = {"mse": functional.mse_loss, "huber": functional.huber_loss, "l1": functional.l1_loss}
    parts = {"motion": losses[motion_loss](raw[..., ~grippers], actions[..., ~grippers])}
    closed = (actions[..., grippers] > 0).float()
    parts["gripper"] = functional.binary_cross_entropy_with_logits(raw[..., grippers], closed)
    return parts["motion"] + gripper_weight * parts["gripper"], parts


class ContinuousHead(nn.Module):
    """Base: `forward` turns [B, W, hidden_size] into rows [B, T, U]."""

    def __init__(self, horizon: int, columns: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        self.horizon, self.columns = horizon, columns
        self._motion_loss, self._gripper_weight = str(sizes["loss"]), float(sizes["gripper_weight"])

    def loss(self, seen: Seen, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return continuous_loss(self._rows(seen), actions, seen.grippers, self._motion_loss, self._gripper_weight)

    def predict(self, seen: Seen) -> Tensor:
        """Returns [B, T, D] with grippers in -1 .. 1, above 0 where closed is the likelier."""
        raw = self._rows(seen)
        return torch.where(seen.grippers, torch.tanh(raw / 2), raw)

    def _rows(self, seen: Seen) -> Tensor:
        return self(seen.window).float().unflatten(-1, (self.horizon, self.columns))[..., seen.columns]


class MlpHead(ContinuousHead):
    """All [LRN]s side by side."""

    def __init__(self, hidden_size: int, horizon: int, columns: int, window: int, sizes: Mapping[str, object]) -> None:
        super().__init__(horizon, columns, sizes)
        self.layers = nn.Sequential(nn.Linear(window * hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, horizon * columns))

    def forward(self, window: Tensor) -> Tensor:
        return self.layers(window.flatten(1))


class LstmHead(ContinuousHead):
    """The paper's best: 4 layers, 1024 wide."""

    def __init__(self, hidden_size: int, horizon: int, columns: int, window: int, sizes: Mapping[str, object]) -> None:
        super().__init__(horizon, columns, sizes)
        width = int(sizes["head_width"])
        self.lstm = nn.LSTM(hidden_size, width, int(sizes["head_layers"]), batch_first=True)
        self.out = nn.Linear(width, horizon * columns)

    def forward(self, window: Tensor) -> Tensor:
        return self.out(self.lstm(window)[0][:, -1])


class TransformerHead(ContinuousHead):
    """Self-attention over the window, read at its newest place."""

    def __init__(self, hidden_size: int, horizon: int, columns: int, window: int, sizes: Mapping[str, object]) -> None:
        super().__init__(horizon, columns, sizes)
        width, heads = int(sizes["head_width"]), int(sizes["head_heads"])
        self.read = nn.Linear(hidden_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(window, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, int(sizes["head_layers"]), nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, horizon * columns)

    def forward(self, window: Tensor) -> Tensor:
        return self.out(self.layers(self.read(window) + self.position)[:, -1])


class BinHead(nn.Module):
    """One-step discrete for a backbone without a vocabulary: the bin of every number at once."""

    def __init__(self, hidden_size: int, horizon: int, columns: int, window: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        self.horizon, self.columns = horizon, columns
        self.layers = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, horizon * columns * BINS))

    def loss(self, seen: Seen, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = functional.cross_entropy(self._logits(seen).flatten(0, 2), to_bins(actions).flatten())
        return loss, {"bins": loss}

    def predict(self, seen: Seen) -> Tensor:
        """Returns the centres of the likeliest bins [B, T, D]."""
        return from_bins(self._logits(seen).argmax(-1))

    def _logits(self, seen: Seen) -> Tensor:
        logits = self.layers(seen.window[:, -1]).float()
        return logits.unflatten(-1, (self.horizon, self.columns, BINS))[:, :, seen.columns]


HEADS = {"mlp": MlpHead, "lstm": LstmHead, "transformer": TransformerHead}
