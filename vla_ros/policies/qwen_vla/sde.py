"""Flow sampling with noise in every Euler step, so that each step is a Gaussian whose log-probability PPO can compute again.

The SDE has the same marginals as the flow: at time tau (1 = noise) the expected noise is Y_tau + (1 - tau) v, the score its negative over
tau, and the step of length h = 1 / N is
    Y_(tau-h) ~ N(Y_tau - h (v + s^2 / (2 tau) (Y_tau + (1 - tau) v)), s^2 h)      with s = level * sqrt(tau / (1 - tau)),
where the first step takes s with the 1 - tau of the second: at tau = 1 it would be infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_ros.core.errors import PolicyError
from vla_ros.policies.flow import NoiseSource, Velocity


@dataclass(frozen=True)
class Denoising:
    """One sampled chunk a row of the batch, with all that is needed to ask for its probability again.

    Args:
        states: [N + 1, B, T, K], from noise to chunk.
        log_probs: [N, B, T], of each step and row, summed over the channels of `mask`.
            Whoever executes only some of the rows adds up those.
        mask: bool [T, K], the robot's own channels.
        level: how much noise.
    """

    states: Tensor
    log_probs: Tensor
    mask: Tensor
    level: float

    @property
    def actions(self) -> Tensor:
        """[B, T, K]."""
        return self.states[-1]

    @property
    def steps(self) -> int:
        return len(self.log_probs)


def transition(velocity: Velocity, rows: Tensor, step: int, steps: int, level: float) -> tuple[Tensor, float]:
    """Returns mean [B, T, K] and standard deviation of the rows after Euler step `step` (0 is the first, from noise)."""
    tau, length = 1 - step / steps, 1 / steps
    spread = level * math.sqrt(tau / (1 - tau if step else length))
    speed = velocity(rows, rows.new_full((len(rows),), tau)).float()
    drift = speed + spread**2 / (2 * tau) * (rows + (1 - tau) * speed)
    return rows - length * drift, spread * math.sqrt(length)


def _log_density(after: Tensor, mean: Tensor, deviation: float, mask: Tensor) -> Tensor:
    """[B, T]."""
    density = -0.5 * ((after - mean) / deviation).square() - math.log(deviation * math.sqrt(2 * math.pi))
    return torch.where(mask, density, 0.0).sum(-1)


def sample(
    velocity: Velocity, noise: Tensor, mask: Tensor, steps: int, level: float, source: NoiseSource, temperature: float = 1.0
) -> Denoising:
    """Draws a chunk for each row of `noise` [B, T, K].

    Args:
        velocity: of the policy at B observations.
        noise: Y1.
        mask: bool [T, K].
        steps: N.
        level: of the injected noise, > 0.
        source: where the injected noise comes from.
        temperature: scales the injected noise; the log-probabilities are those of temperature 1. The paper samples with 1 to learn.

    Raises:
        PolicyError: steps < 1 or level <= 0, which have no probability.
    """
    if steps < 1 or not level > 0:
        raise PolicyError(
            f"SDE sampling with steps = {steps}, level = {level}: both must be above 0 (without noise there is no probability)"
        )
    states, log_probs = [torch.where(mask, noise, 0.0)], []
    for step in range(steps):
        mean, deviation = transition(velocity, states[-1], step, steps, level)
        drawn = mean + temperature * deviation * source.draw(tuple(noise.shape), noise.device)
        states.append(torch.where(mask, drawn, 0.0))
        log_probs.append(_log_density(states[-1], mean, deviation, mask))
    return Denoising(torch.stack(states), torch.stack(log_probs), mask, level)


def log_prob(velocity: Velocity, denoising: Denoising, step: int) -> Tensor:
    """The log-probability [B, T] of each row in one step of a stored trajectory under the weights of today; differentiable in them.

    Raises:
        PolicyError: the trajectory has no such step.
    """
    if not 0 <= step < denoising.steps:
        raise PolicyError(f"denoising step {step}; the trajectory has 0 .. {denoising.steps - 1}")
    mean, deviation = transition(velocity, denoising.states[step], step, denoising.steps, denoising.level)
    return _log_density(denoising.states[step + 1], mean, deviation, denoising.mask)
