"""Discrete actions: 256 bins of [-1, 1], and their place among the last ids of a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vla_ros.core.errors import PolicyError
from vla_ros.policies.network import Inputs
from vla_ros.policies.vlms.backbone import Backbone, Encoding

BINS = 256
OFFSET = 10  # the last ids of many vocabularies are special


def to_bins(actions: Tensor) -> Tensor:
    """[-1, 1] -> 0 .. 255; what lies outside goes to the outermost bin."""
    return ((actions.float() + 1) * (BINS / 2)).floor().clamp(0, BINS - 1).long()


def from_bins(bins: Tensor) -> Tensor:
    """The centre of each bin."""
    return (bins.float() + 0.5) * (2 / BINS) - 1


class Vocabulary:
    """Writes and reads chunks as ids of a language model with `rows` ids, row after row, channel after channel."""

    def __init__(self, rows: int, words: int) -> None:
        if rows - OFFSET - BINS < words:
            raise PolicyError(f"the language model has {rows} ids, {words} of them words: {BINS} bins and {OFFSET} ids behind do not fit")
        self.ids = range(rows - OFFSET - BINS, rows - OFFSET)

    def loss(
        self, backbone: Backbone, batch: Inputs, state: Tensor, cameras: tuple[str, ...], actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Encoding]:
        """Cross-entropy of the next id over the whole vocabulary."""
        ids = self.ids.start + to_bins(actions).flatten(1)
        logits, encoding = backbone.score(batch.images, state, batch.tokens, cameras, ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        return loss, {"bins": loss}, encoding

    @torch.no_grad()
    def predict(self, backbone: Backbone, inputs: Inputs, state: Tensor, cameras: tuple[str, ...], shape: tuple[int, int]) -> Tensor:
        """Returns the likeliest chunk [B, T, D] for `shape` (T, D), one id after the other."""
        rows, columns = shape
        ids = backbone.generate(inputs.images, state, inputs.tokens, cameras, rows * columns, self.ids)
        return from_bins(ids - self.ids.start).unflatten(1, (rows, columns))
