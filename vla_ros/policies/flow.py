"""Flow matching, for every policy that makes its actions out of noise: samplers of tau, the loss, Euler steps, real-time chunking.

tau = 1 is noise Y1, tau = 0 the action chunk Y0. Between them Y_tau = (1 - tau) Y0 + tau Y1, and a network predicts the velocity Y1 - Y0.
Chunks are [B, T, K] (rows, channels), tau is [B].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_ros.core.errors import PolicyError

Velocity = Callable[[Tensor, Tensor], Tensor]  # (Y_tau [B, T, K], tau [B]) -> [B, T, K]
LEAST_TAU = 0.001  # where nothing is left to take away, a velocity cannot be learnt
DEFAULT_BETA = 5.0


def beta_tau(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns tau [count] ~ Beta(1.5, 1), squeezed into 0.001 .. 1.

    It favours noise, as in pi0 and GR00T, the "standard practice" that the Qwen-VLA paper follows. (Its section 5 says that Beta favours
    the clean end; that is so for the opposite direction of time.)
    """
    uniform = torch.rand(count, generator=generator)
    return LEAST_TAU + (1 - LEAST_TAU) * uniform ** (1 / 1.5)  # the inverse of Beta(1.5, 1)'s distribution function tau^1.5


def sigmoid_normal_tau(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns tau [count] = sigmoid(N(0, 1)): most of it half way, where text alone still decides."""
    return torch.randn(count, generator=generator).sigmoid()


TAU_SAMPLERS: dict[str, Callable[..., Tensor]] = {"beta": beta_tau, "sigmoid_normal": sigmoid_normal_tau}


class NoiseSource:
    """Standard normal noise that begins anew on `reset`. It is drawn on the CPU, so that a seed means the same on every device."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.generator = torch.Generator()
        self.reset()

    def reset(self) -> None:
        self.generator.manual_seed(self.seed)

    def draw(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        return torch.randn(shape, generator=self.generator).to(device)


def interpolate(actions: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """Returns Y_tau."""
    share = tau[:, None, None]
    return (1 - share) * actions + share * noise


def channel_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid rows of each channel, then over a sample's active channels, then over the samples.

    Every channel weighs the same in however many rows it is there, and what is masked gets a gradient of exactly zero.

    Args:
        errors: [B, T, K].
        mask: bool [B, T, K].

    Raises:
        PolicyError: a sample has no valid entry.
    """
    rows = mask.sum(1)
    active = rows > 0
    if not bool(active.any(-1).all()):
        raise PolicyError(f"{int((~active.any(-1)).sum())} of {len(mask)} samples have no valid action: take them out of the batch")
    channels = torch.where(mask, errors, 0.0).sum(1) / rows.clamp(min=1)
    return (channels.sum(-1) / active.sum(-1)).mean()


def flow_loss(velocity: Velocity, actions: Tensor, tau: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared error of the velocity at Y_tau, averaged by `channel_mean`.

    Args:
        velocity: the network.
        actions: Y0 [B, T, K]; what lies outside of the mask may hold anything, NaN too: it neither reaches the network nor the loss.
        tau: [B], see `TAU_SAMPLERS`.
        noise: Y1 [B, T, K].
        mask: bool [B, T, K], None: all of it is valid.
    """
    if mask is None:
        mask = torch.ones_like(actions, dtype=torch.bool)
    actions, noise = torch.where(mask, actions, 0.0), torch.where(mask, noise, 0.0)
    found = velocity(interpolate(actions, noise, tau), tau)
    return channel_mean((found.float() - (noise - actions)).square(), mask)


def solve(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Integrates from `noise` at tau = 1 to the chunk at tau = 0 with `steps` equal Euler steps. Raises PolicyError for steps < 1."""
    if steps < 1:
        raise PolicyError(f"steps = {steps}, expected at least one Euler step")
    rows = noise
    for step in range(steps):
        rows = rows - velocity(rows, rows.new_full((len(rows),), 1 - step / steps)) / steps
    return rows


@dataclass(frozen=True)
class Guidance:
    """What a chunk has to continue: `rows` [B, T, K] and how strongly each entry holds, `weights` [T, K] in 0 .. 1.

    `beta` bounds the pull where the noise still says nothing about the chunk.
    """

    rows: Tensor
    weights: Tensor
    beta: float = DEFAULT_BETA


def guidance(prefix: Tensor, prefix_weights: Tensor | None, shape: tuple[int, int, int], beta: float = DEFAULT_BETA) -> Guidance:
    """Fits `Inputs.prefix` [B, P, D] and `prefix_weights` [P] (None: all 1) to a chunk of `shape` [B, T, K]; the rest has weight 0.

    Raises:
        PolicyError: the prefix is longer, wider or of another batch than the chunk, or has another length than its weights.
    """
    batch, length, width = prefix.shape
    strength = prefix.new_ones(length) if prefix_weights is None else prefix_weights
    if batch != shape[0] or length > shape[1] or width > shape[2] or strength.shape != (length,):
        raise PolicyError(
            f"prefix {tuple(prefix.shape)} with weights {tuple(strength.shape)} for a chunk {tuple(shape)}: "
            "expected at most as many rows and channels, one weight a row"
        )
    rows, weights = prefix.new_zeros(shape), prefix.new_zeros(shape[1:])
    rows[:, :length, :width] = prefix
    weights[:length, :width] = strength[:, None]
    return Guidance(rows, weights, beta)


def guidance_scale(tau: Tensor, beta: float) -> Tensor:
    """min(beta, (1 - t) / (t r^2)) with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2) of arXiv:2506.07339, whose time t is 1 - tau."""
    return ((tau.square() + (1 - tau).square()) / (tau * (1 - tau))).clamp(max=beta)


def guided(velocity: Velocity, wanted: Guidance) -> Velocity:
    """Wraps a velocity so that the chunk it leads to continues `wanted` (real-time chunking).

    At each step the clean chunk is estimated, Y0 = Y_tau - tau v; its weighted error, taken back through the network by the true
    vector-Jacobian product dY0/dY_tau, bends the velocity. As time runs towards 0 here, the pull is subtracted.

    Raises:
        PolicyError: (on a call) under `torch.inference_mode`, which forbids the derivative; use `torch.no_grad`.
    """

    def bent(rows: Tensor, tau: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise PolicyError("real-time chunking needs a derivative, which torch.inference_mode() forbids: call under torch.no_grad()")
        with torch.enable_grad():
            free = rows.detach().requires_grad_()
            speed = velocity(free, tau)
            clean = free - tau[:, None, None] * speed
            error = (wanted.rows - clean.detach()) * wanted.weights
            (pull,) = torch.autograd.grad(clean, free, error)
        return speed.detach() - guidance_scale(tau, wanted.beta)[:, None, None] * pull

    return bent
