"""The action expert: single-stream transformer blocks over [projected VLM states; noisy action tokens], modulated by tau.

The attention is causal between the two parts: VLM tokens do not see action tokens, and as they are clean they are modulated as tau = 0.
(The paper says "joint self-attention" and leaves both open.) So keys and values of the VLM part are the same in every Euler step: `prefill`
makes them once per observation, `velocity` runs the action tokens alone, and `forward`, the whole in one pass, gives the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.qwen_vla.rope import Rope, following, rotate, text_positions

TIME_FEATURES = 256
_TIME_SCALE = 1000.0  # tau 0 .. 1 covers the wave lengths of the sinusoid


class Prefix(NamedTuple):
    """The VLM part of an observation.

    `states` are one (key, value) [B, heads, N, head_size] a block; `mask` bool [B, N]; `positions` int64 [B, 3, N].
    """

    states: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    positions: Tensor

    def repeat(self, times: int) -> Prefix:
        """Each observation `times` in a row: [B, ...] -> [B * times, ...]."""
        if times == 1:
            return self
        states = tuple((key.repeat_interleave(times, 0), value.repeat_interleave(times, 0)) for key, value in self.states)
        return Prefix(states, self.mask.repeat_interleave(times, 0), self.positions.repeat_interleave(times, 0))


class Block(nn.Module):
    """AdaLN -> attention -> AdaLN -> SwiGLU: 6 d^2 + 4 d^2 + 20 d^2 weights with `hidden` = 20 d / 3."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_scale, self.key_scale = (nn.Parameter(torch.ones(width // heads)) for _ in range(2))
        self.output = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.modulation.weight)
        # The gates start open a crack: closed ones (AdaLN-zero) keep a small network from learning for its first hundreds of steps.
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            gates = self.modulation.bias.unflatten(0, (6, width))
            gates[2].fill_(0.5)
            gates[5].fill_(0.5)

    def project(self, x: Tensor, shift: Tensor, scale: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, d] -> query, key, value [B, heads, N, head_size]."""
        qkv = self.qkv(modulate(x, shift, scale)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = unit_rms(qkv[0], self.query_scale), unit_rms(qkv[1], self.key_scale)
        return rotate(query, angles), rotate(key, angles), qkv[2]

    def forward(
        self, x: Tensor, condition: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the tokens and their own (key, value).

        Args:
            x: [B, N, d].
            condition: [B or 1, N or 1, d], of tau.
            angles: see `Rope.angles`.
            mask: bool, broadcast to [B, heads, N, M + N]: what each token sees.
            past: key and value of M tokens that come before.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(condition).chunk(6, dim=-1)
        query, key, value = self.project(x, shift, scale, angles)
        keys, values = (key, value) if past is None else (torch.cat([past[0], key], 2), torch.cat([past[1], value], 2))
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + gate * self.output(seen.transpose(1, 2).flatten(2))
        gated, up = self.gate_up(modulate(x, shift_mlp, scale_mlp)).chunk(2, dim=-1)
        return x + gate_mlp * self.down(functional.silu(gated) * up), (key, value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def unit_rms(x: Tensor, scale: Tensor) -> Tensor:
    """In float32, which autocast would not choose by itself."""
    return functional.rms_norm(x.float(), scale.shape, scale.float()).to(x.dtype)


def two_layers(inner: int, width: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, outer))


class ActionExpert(nn.Module):
    """The diffusion transformer.

    Args:
        context: width of the VLM states.
        width, blocks, heads: of the transformer; `heads` divides `width`.
        channels: K columns of an action row, whatever the robot.
        theta: base of the rotary positions, the backbone's.
    """

    def __init__(self, context: int, width: int, blocks: int, heads: int, channels: int, theta: float) -> None:
        super().__init__()
        hidden = 20 * width // 3
        self.rope = Rope(width // heads, theta)
        self.read_context = nn.Linear(context, width)
        self.read_actions = two_layers(channels, width, width)
        self.time = two_layers(TIME_FEATURES, width, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.output_modulation = nn.Linear(width, 2 * width)
        self.write_actions = two_layers(width, width, channels)
        nn.init.zeros_(self.output_modulation.weight)
        nn.init.zeros_(self.output_modulation.bias)

    def prefill(self, sequence: Tensor, mask: Tensor, positions: Tensor | None = None) -> Prefix:
        """Runs the VLM part.

        Args:
            sequence: [B, N, context].
            mask: bool [B, N], False where there is only padding.
            positions: int64 [B, 3, N], None: one after the other.
        """
        positions = text_positions(mask) if positions is None else positions
        angles, seen = self.rope.angles(positions), mask[:, None, None]
        x, condition, states = self._read(sequence), self._condition(sequence.new_zeros(1)), []
        for block in self.blocks[:-1]:
            x, state = block(x, condition, angles, seen)
            states.append(state)
        last = self.blocks[-1]  # nothing reads what its VLM tokens become: their keys and values are enough
        shift, scale = last.modulation(condition).chunk(6, dim=-1)[:2]
        states.append(last.project(x, shift, scale, angles)[1:])
        return Prefix(tuple(states), mask, positions)

    def velocity(self, prefix: Prefix, rows: Tensor, tau: Tensor, steps: Tensor | None = None) -> Tensor:
        """Returns the velocity [B, T, K].

        Args:
            prefix: see `prefill`.
            rows: Y_tau [B, T, K], zero beyond the robot's own channels.
            tau: [B].
            steps: bool [B, T], False for rows past the end of the trajectory; None: all are valid.
        """
        steps = rows.new_ones(rows.shape[:2], dtype=torch.bool) if steps is None else steps
        angles = self.rope.angles(following(prefix.positions, prefix.mask, rows.shape[1]))
        seen = torch.cat([prefix.mask, steps], 1)[:, None, None]
        x, condition = self.read_actions(rows.to(self.read_context.weight.dtype)), self._condition(tau)
        for block, past in zip(self.blocks, prefix.states, strict=True):
            x, _ = block(x, condition, angles, seen, past)
        return self._write(x, condition)

    def forward(self, sequence: Tensor, mask: Tensor, rows: Tensor, tau: Tensor, positions: Tensor | None = None) -> Tensor:
        """The definition, in one pass without a cache; arguments as in `prefill` and `velocity`."""
        count, length = sequence.shape[1], rows.shape[1]
        positions = text_positions(mask) if positions is None else positions
        angles = self.rope.angles(torch.cat([positions, following(positions, mask, length)], -1))
        seen = torch.cat([mask, mask.new_ones(len(mask), length)], 1)[:, None, None].repeat(1, 1, count + length, 1)
        seen[:, :, :count, count:] = False
        clean = self._condition(tau.new_zeros(1)).expand(len(tau), count, -1)
        noisy = self._condition(tau)
        condition = torch.cat([clean, noisy.expand(-1, length, -1)], 1)
        x = torch.cat([self._read(sequence), self.read_actions(rows.to(self.read_context.weight.dtype))], 1)
        for block in self.blocks:
            x, _ = block(x, condition, angles, seen)
        return self._write(x[:, count:], noisy)

    def _read(self, sequence: Tensor) -> Tensor:
        with torch.autocast(sequence.device.type, enabled=False):  # places in a picture, which bfloat16 is too coarse for
            return self.read_context(sequence.to(self.read_context.weight.dtype))

    def _condition(self, tau: Tensor) -> Tensor:
        """tau [B] -> [B, 1, d]."""
        half = TIME_FEATURES // 2
        rates = torch.exp(-math.log(10_000.0) / half * torch.arange(half, device=tau.device, dtype=torch.float32))
        turns = _TIME_SCALE * tau.float()[:, None] * rates
        features = torch.cat([turns.cos(), turns.sin()], -1).to(self.time[0].weight.dtype)
        return functional.silu(self.time(features))[:, None]

    def _write(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.output_modulation(condition).chunk(2, dim=-1)
        return self.write_actions(modulate(x, shift, scale))
