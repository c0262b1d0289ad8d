"""The action head: one block a layer of the backbone turns noise into a chunk, in one pass.

A block asks three times with one query: the learnable queries' states of its layer and the proprioception, the layer's states of the
pictures, and the chunk itself. Each has a softmax of its own, so that none drowns the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vla_ros.policies.mol_msm.attention import attend


class Block(nn.Module):
    """Mixture-of-layers attention, then an MLP.

    16 d^2 weights beside a small gate: 1 the query, 2 each for keys and values of the pictures and of the chunk, 3 the output, 8 the MLP.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.read_context, self.read_visual, self.norm_mlp = (nn.LayerNorm(width) for _ in range(4))
        self.query = nn.Linear(width, width)
        self.visual = nn.Linear(width, 2 * width)
        self.own = nn.Linear(width, 2 * width)
        self.output = nn.Linear(3 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gate = nn.Sequential(nn.Linear(width, max(width // 4, 1)), nn.GELU(), nn.Linear(max(width // 4, 1), heads))
        nn.init.zeros_(self.gate[-1].weight)  # with the bias: every head's factor starts as 1
        nn.init.ones_(self.gate[-1].bias)
        self.alpha = nn.Parameter(torch.ones(()))

    def factors(self, told: Tensor) -> Tensor:
        """g: the factor of each head's scores over the context, normalised [B, N, d] -> [B, heads]."""
        return self.gate(told.mean(1))

    def forward(self, x: Tensor, context: Tensor, visual: Tensor) -> Tensor:
        """Returns the chunk's tokens.

        Args:
            x: [B, H, d].
            context: [B, N_q + 1, d], C: the queries' states and the proprioception; but for its norm it is key and value as it is.
            visual: [B, N_v, d], V.
        """
        rows = self.norm(x)
        query, told = self.query(rows), self.read_context(context)
        branches = [
            attend(query, told, told, self.heads, factors=self.factors(told)),
            attend(query, *self.visual(self.read_visual(visual)).chunk(2, -1), self.heads, factors=self.alpha),
            attend(query, *self.own(rows).chunk(2, -1), self.heads),
        ]
        x = x + self.output(torch.cat(branches, -1))
        return x + self.mlp(self.norm_mlp(x))


class ActionHead(nn.Module):
    """`depth` blocks between two linear layers.

    Args:
        width, heads: of the attention; `width` is the backbone's.
        depth: layers of the backbone.
        horizon, channels: of a chunk.
        features: of the proprioception.
    """

    def __init__(self, width: int, heads: int, depth: int, horizon: int, channels: int, features: int) -> None:
        super().__init__()
        self.read_noise = nn.Linear(channels, width)
        self.rows = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.read_state = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, channels)

    def forward(
        self, noise: Tensor, state: Tensor, queries: Sequence[Tensor], visual: Sequence[Tensor], refine: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Returns the chunk [B, H, A].

        Args:
            noise: [B, H, A].
            state: [B, F].
            queries, visual: of each layer, [B, N_q, d] and [B, N_v, d].
            refine: what the memory adds to the tokens half way, where they know what is seen and enough blocks are left to correct it.
        """
        x = self.read_noise(noise) + self.rows
        state = self.read_state(state)[:, None]
        for index, block in enumerate(self.blocks):
            context = torch.cat([queries[index], state.to(queries[index].dtype)], 1)
            x = block(x, context, visual[index])
            if refine is not None and index == (len(self.blocks) - 1) // 2:
                x = refine(x)
        return self.write(self.norm(x))
