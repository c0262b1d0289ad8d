"""Flow matching heads: the chunk is made out of noise by action tokens that attend to what the backbone saw.

"flow" shows them the last [LRN]s; "expert", the action expert of pi0, every state of the newest observation and the proprioception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.flow import TAU_SAMPLERS, NoiseSource, Velocity, flow_loss, guidance, guided, solve
from vla_ros.policies.robo_vlms.heads import Seen


class Context(NamedTuple):
    """Keys and values [B, heads, N, d] of each block, and which are there, bool [B, N]: computed once a chunk."""

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor


class Block(nn.Module):
    """Action tokens attend to the context and to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.own, self.seen = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def look(self, context: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.seen(context).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        normed = self.norm(x)
        keys, values = (self._split(part) for part in self.own(normed).chunk(2, dim=-1))
        keys, values = torch.cat([seen[0], keys], dim=2), torch.cat([seen[1], values], dim=2)
        attended = functional.scaled_dot_product_attention(self._split(self.query(normed)), keys, values, attn_mask=mask[:, None, None])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FlowHead(nn.Module):
    """See the module."""

    def __init__(
        self, hidden_size: int, horizon: int, columns: int, window: int, sizes: Mapping[str, object], state_width: int = 0
    ) -> None:
        super().__init__()
        if sizes["flow_tau"] not in TAU_SAMPLERS:
            raise PolicyError(f"network.flow_tau = {sizes['flow_tau']!r}; {did_you_mean(str(sizes['flow_tau']), TAU_SAMPLERS)}")
        width = int(sizes["head_width"])
        self.horizon, self.columns, self.steps = horizon, columns, int(sizes["flow_steps"])
        self._tau, self._noise = TAU_SAMPLERS[str(sizes["flow_tau"])], NoiseSource(int(sizes["seed"]))
        self.read = nn.Linear(hidden_size, width)
        self.read_state = nn.Linear(state_width, width) if state_width else None
        self.age = None if state_width else nn.Parameter(0.02 * torch.randn(window, width))
        self.embed = nn.Linear(columns, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([Block(width, int(sizes["head_heads"])) for _ in range(int(sizes["head_layers"]))])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, columns)

    def reset(self) -> None:
        """Starts the noise anew."""
        self._noise.reset()

    def loss(self, seen: Seen, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tau = self._tau(len(actions)).to(actions.device)
        loss = flow_loss(self.velocity(seen), actions, tau, torch.randn_like(actions))
        return loss, {"flow": loss}

    def predict(self, seen: Seen, prefix: Tensor | None = None, prefix_weights: Tensor | None = None) -> Tensor:
        """Returns [B, T, D] out of new noise; with `prefix` [B, P, D] (real-time chunking) a chunk that goes on from it."""
        shape = len(seen.window), self.horizon, seen.columns.stop - seen.columns.start
        velocity = self.velocity(seen)
        if prefix is not None:
            velocity = guided(velocity, guidance(prefix, prefix_weights, shape))
        return solve(velocity, self._noise.draw(shape, seen.window.device), self.steps)

    def velocity(self, seen: Seen) -> Velocity:
        """Reads what was seen once, and returns the velocity of the embodiment's own columns."""
        context = self._context(seen)

        def speed(rows: Tensor, tau: Tensor) -> Tensor:
            spread = rows.new_zeros(*rows.shape[:-1], self.columns)
            spread[..., seen.columns] = rows
            return self._speed(spread, tau, context)[..., seen.columns].float()

        return speed

    def _context(self, seen: Seen) -> Context:
        if self.read_state is None:
            tokens = self.read(seen.window) + self.age
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            tokens = torch.cat([self.read(seen.sequence), self.read_state(seen.state)[:, None]], dim=1)
            mask = functional.pad(seen.mask, (0, 1), value=True)
        mask = functional.pad(mask, (0, self.horizon), value=True)  # the action tokens themselves
        return Context([block.look(tokens) for block in self.blocks], mask)

    def _speed(self, rows: Tensor, tau: Tensor, context: Context) -> Tensor:
        embedded = self.embed(rows.to(self.embed.weight.dtype))
        time = sinusoid(tau, embedded.shape[-1])[:, None].to(embedded.dtype).expand_as(embedded)
        x = self.mix(torch.cat([embedded, time], dim=-1)) + self.position
        for block, seen in zip(self.blocks, context.keys_values, strict=True):
            x = block(x, seen, context.mask)
        return self.out(self.norm(x))


def sinusoid(tau: Tensor, width: int) -> Tensor:
    """[B] in 0 .. 1 -> [B, width]: sines and cosines with periods of 0.004 .. 4, as in pi0."""
    periods = torch.logspace(math.log10(0.004), math.log10(4.0), (width + 1) // 2, device=tau.device)
    angles = 2 * math.pi * tau[:, None].float() / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]
