"""The action expert of pi0: one state token and the noisy action tokens, which attend to keys and values of the observation in each layer.

Its layers are Gemma's. What their feed-forward parts compute is left to a `Mix`, see `mixture`: alone, the shared part makes pi0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.qwen_vla.rope import Rope, following, rotate
from vla_ros.policies.robo_vlms.flow_head import sinusoid

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),  # of pi0's own weights
}


class Prefix(NamedTuple):
    """One observation, read once for thinking and acting.

    Args:
        layers: of each layer of the expert the observation's (key, value) [B, key_heads, N, head_size], keys rotated to their places.
        mask: bool [B, N], False at padding.
        positions: int64 [B, 3, N], see `rope`.
        logits: [B, n + 1, vocabulary]: of what follows the observation and each of n words that were read behind it.
        hidden, visual: [B, H] and [B, V], for the auxiliary losses.
        memory: [B, N, H] for a writer of its own; None where words go on from `layers`.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    positions: Tensor
    logits: Tensor
    hidden: Tensor
    visual: Tensor
    memory: Tensor | None = None

    def row(self, index: int) -> Prefix:
        """One of the B observations, [1, ...]."""
        return self._each(lambda tensor: tensor[index : index + 1])

    def repeat(self, times: int) -> Prefix:
        """Each observation `times` in a row: [B * times, ...]."""
        return self if times == 1 else self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prefix:
        layers = tuple((change(key), change(value)) for key, value in self.layers)
        return Prefix(layers, *(None if part is None else change(part) for part in self[1:]))


class SwiGlu(nn.Module):
    """down(activation(gate) * up): 3 * width * hidden weights."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.gate_up.weight, self.down.weight, self.activation)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """x [..., width] with gate_up [2 * hidden, width], gates first, and down [width, hidden]."""
    gate, up = functional.linear(x, gate_up).chunk(2, dim=-1)
    return functional.linear(ACTIVATIONS[activation](gate) * up, down)


Mix = Callable[[int, SwiGlu, Tensor], Tensor]  # (layer, its shared part, x [B, N, width]) -> [B, N, width]


def shared_alone(layer: int, shared: SwiGlu, x: Tensor) -> Tensor:
    """The mix of pi0."""
    return shared(x)


class RmsNorm(nn.Module):
    """Gemma's: scaled by 1 + weight, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), 1e-6).to(x.dtype)


class Layer(nn.Module):
    """Norm -> attention -> norm -> feed-forward, without biases; few key heads serve all query heads."""

    def __init__(self, width: int, hidden: int, heads: int, key_heads: int, head_size: int, activation: str) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        self.norm, self.norm_shared = RmsNorm(width), RmsNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * key_heads) * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, width, bias=False)
        self.shared = SwiGlu(width, hidden, activation)

    def attend(self, x: Tensor, past: tuple[Tensor, Tensor], mask: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Returns x [B, N, width] after attention to `past` and to itself; mask bool [B, 1, N, M + N]."""
        heads = self.qkv(self.norm(x)).unflatten(-1, (self.heads + 2 * self.key_heads, -1)).transpose(1, 2)
        query, key, value = heads.split((self.heads, self.key_heads, self.key_heads), dim=1)
        key, value = torch.cat([past[0].to(key.dtype), rotate(key, angles)], 2), torch.cat([past[1].to(value.dtype), value], 2)
        seen = functional.scaled_dot_product_attention(rotate(query, angles), key, value, attn_mask=mask, enable_gqa=True)
        return x + self.output(seen.transpose(1, 2).flatten(2))


class ActionExpert(nn.Module):
    """The expert without its skills.

    Args:
        width, layers, hidden, heads, key_heads, head_size: as in a Gemma.
        channels, state_width: columns of an action row and of the state token, whatever the robot.
        theta: base of the rotary positions, the backbone's.
        activation: key of `ACTIVATIONS`.
    """

    def __init__(
        self, width: int, layers: int, hidden: int, heads: int, key_heads: int, head_size: int, channels: int, state_width: int,
        theta: float, activation: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rope = Rope(head_size, theta)
        self.read_state, self.read_actions = nn.Linear(state_width, width), nn.Linear(channels, width)
        self.read_time = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(Layer(width, hidden, heads, key_heads, head_size, activation) for _ in range(layers))
        self.norm = RmsNorm(width)
        self.write_actions = nn.Linear(width, channels)

    def velocity(self, prefix: Prefix, state: Tensor, rows: Tensor, tau: Tensor, mix: Mix = shared_alone) -> Tensor:
        """Returns the velocity [B, T, K].

        Args:
            prefix: the observation.
            state: [B, state_width].
            rows: Y_tau [B, T, K], zero beyond the robot's own channels.
            tau: [B].
            mix: what the feed-forward parts compute.
        """
        dtype = self.read_actions.weight.dtype
        with torch.autocast(state.device.type, enabled=False):  # bfloat16 would round a position to half a millimetre
            known = self.read_state(state.to(dtype))[:, None]
        actions = self.read_actions(rows.to(dtype))
        time = sinusoid(tau, actions.shape[-1])[:, None].to(actions.dtype).expand_as(actions)
        x = torch.cat([known, self.read_time(torch.cat([actions, time], -1))], 1)
        angles = self.rope.angles(following(prefix.positions, prefix.mask, x.shape[1]))
        seen = _seen(prefix.mask, x.shape[1])
        for i, (layer, past) in enumerate(zip(self.layers, prefix.layers, strict=True)):
            x = layer.attend(x, past, seen, angles)
            x = x + mix(i, layer.shared, layer.norm_shared(x))
        return self.write_actions(self.norm(x[:, 1:]))


def _seen(mask: Tensor, count: int) -> Tensor:
    """bool [B, 1, count, N + count]: everything sees the observation, the state no action, the actions all."""
    own = mask.new_ones(count, count)
    own[0, 1:] = False
    return torch.cat([mask[:, None].expand(-1, count, -1), own.expand(len(mask), -1, -1)], -1)[:, None]
