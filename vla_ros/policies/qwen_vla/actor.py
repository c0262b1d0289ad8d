"""Qwen-VLA as reinforcement sees it: it draws chunks that have a probability, says how good an observation is, and both again later."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vla_ros.policies.flow import NoiseSource, Velocity, beta_tau, interpolate
from vla_ros.policies.network import Inputs
from vla_ros.policies.qwen_vla.network import QwenVla
from vla_ros.policies.qwen_vla.ppo import ValueHead
from vla_ros.policies.qwen_vla.sde import Denoising, log_prob, sample


class EpisodeNoise:
    """Each row of a batch from a source of its own, so that an episode's noise does not depend on what runs beside it."""

    def __init__(self, sources: Iterable[NoiseSource]) -> None:
        self._sources = list(sources)

    def draw(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """shape [B, ...], B as many as there are sources."""
        return torch.cat([source.draw((1, *shape[1:]), device) for source in self._sources])


class Actor(nn.Module):
    """A network and its value head. It stays in evaluation mode: dropout would give rollout and update different probabilities."""

    def __init__(self, network: QwenVla) -> None:
        super().__init__()
        self.network, self.value = network, ValueHead(network.hidden_size)
        self.eval()

    @torch.no_grad()
    def act(self, inputs: Inputs, noise: EpisodeNoise, level: float, temperature: float) -> tuple[Denoising, Tensor]:
        """Draws a chunk and its value [B] for each observation; `level` and `temperature` as in `sde.sample`."""
        network = self.network
        context = network.context(inputs)
        start = noise.draw((len(inputs.tokens), network.horizon, network.channels))
        mask = context.mask.expand(network.horizon, -1)
        drawn = sample(network.velocity(context), start, mask, network.euler_steps, level, noise, temperature)
        return drawn, self.value(context.reading.sequence, context.reading.mask)

    def judge(self, inputs: Inputs, drawn: Denoising, executed: Tensor, steps: Iterable[int]) -> tuple[Tensor, Tensor, Velocity]:
        """Log-probabilities and values [B] and the flow under the weights of today, differentiable in them.

        Args:
            inputs, drawn: as they were in `act`.
            executed: int [B], how many rows of each chunk the robot got to; only their probabilities count.
            steps: which denoising steps are added up.
        """
        context = self.network.context(inputs)
        velocity = self.network.velocity(context)
        found = executed_sum(torch.stack([log_prob(velocity, drawn, step) for step in steps]), executed)
        return found, self.value(context.reading.sequence, context.reading.mask), velocity


def executed_rows(executed: Tensor, count: int) -> Tensor:
    """executed int [B] -> bool [B, count]."""
    return torch.arange(count, device=executed.device) < executed[:, None]


def executed_sum(log_probs: Tensor, executed: Tensor) -> Tensor:
    """log_probs [N, B, T], executed int [B] -> [B].

    What a robot never did cannot have earned its reward. (Rows that are not executed do touch the others a little, through the attention
    between the denoising steps; that path is left out.)
    """
    return torch.where(executed_rows(executed, log_probs.shape[-1]), log_probs, 0.0).sum((0, 2))


def imitation_loss(velocity: Velocity, drawn: Denoising, executed: Tensor, good: Tensor, generator: torch.Generator) -> Tensor:
    """The flow's squared error towards chunks that were drawn, a scalar: over the executed rows of those that are `good` (bool [B])."""
    actions = drawn.actions
    mask = executed_rows(executed, actions.shape[1])[..., None] & drawn.mask & good[:, None, None]
    noise = torch.where(drawn.mask, torch.randn(actions.shape, generator=generator), 0.0)
    tau = beta_tau(len(actions), generator)
    errors = (velocity(interpolate(actions, noise, tau), tau) - (noise - actions)).square()
    return torch.where(mask, errors, 0.0).sum() / mask.sum().clamp(min=1)
