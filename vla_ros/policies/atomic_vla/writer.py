"""The small text decoder for a backbone without a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Writer(nn.Module):
    """A causal transformer that looks at what the backbone saw.

    Args:
        vocabulary: ids.
        context: width of what it looks at.
        width, layers, heads: its own.
        length: most ids that are scored at once.
    """

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.read = nn.Linear(context, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.write = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, context: Tensor, mask: Tensor, written: Tensor) -> Tensor:
        """Returns logits [B, n + 1, vocabulary] of what follows the observation and each of n ids.

        Args:
            context: [B, N, context].
            mask: bool [B, N], False at padding.
            written: int64 [B, n].
        """
        x = torch.cat([self.start.expand(len(written), 1, -1), self.embed(written)], 1) + self.position[: written.shape[1] + 1]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        context = self.read(context)
        for layer in self.layers:
            x = layer(x, context, tgt_mask=later, memory_key_padding_mask=~mask)
        return self.write(self.norm(x)).float()
