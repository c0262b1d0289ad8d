"""Proximal policy optimisation over action chunks: advantages, the clipped objective and the value head. Pure functions, no simulator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

GAMMA, LAMBDA, EPSILON, VALUE_WEIGHT, EPOCHS = 0.99, 0.95, 0.2, 1.0, 4
ACTOR_RATE, VALUE_RATE = 5e-6, 1e-4


class ValueHead(nn.Module):
    """How good an observation is: a line through the mean of its VLM states. Its gradient stops there.

    Args:
        width: of the VLM states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, 1)
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """sequence [B, N, width], mask bool [B, N] -> [B]."""
        there = mask.unsqueeze(-1)
        mean = torch.where(there, sequence.detach().float(), 0.0).sum(1) / there.sum(1).clamp(min=1)
        return self.line(mean.to(self.line.weight.dtype)).squeeze(-1).float()


def advantages(
    rewards: Tensor, values: Tensor, ended: Tensor, last_value: Tensor, gamma: float = GAMMA, trace: float = LAMBDA
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; one step is one chunk.

    Args:
        rewards: [S, E], steps in order, E environments.
        values: [S, E], of the observation before each chunk.
        ended: bool [S, E], the episode was over after the chunk: nothing from beyond flows back.
        last_value: [E], of the observation after the last chunk.
        gamma, trace: discount and trace decay (lambda).

    Returns:
        advantages [S, E] and returns [S, E], what the value head should have said.
    """
    found, running, following = torch.zeros_like(values), torch.zeros_like(last_value), last_value
    for step in reversed(range(len(rewards))):
        goes_on = (~ended[step]).to(values.dtype)
        surprise = rewards[step] + gamma * goes_on * following - values[step]
        running = surprise + gamma * trace * goes_on * running
        found[step], following = running, values[step]
    return found, found + values


def normalized(advantage: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over a whole batch; equal advantages become 0."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


class Objective(NamedTuple):
    """`loss` = `actor` + weight * `value`; `clipped`: share of ratios beyond 1 +- epsilon; `divergence`: estimate of KL(old, new)."""

    loss: Tensor
    actor: Tensor
    value: Tensor
    clipped: Tensor
    divergence: Tensor


def objective(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, values: Tensor, old_values: Tensor, returns: Tensor,
    epsilon: float = EPSILON, value_weight: float = VALUE_WEIGHT,
) -> Objective:  # fmt: skip
    """The clipped surrogate and the clipped value regression; all arguments [B], the old ones from the rollout."""
    change = log_probs - old_log_probs
    ratio = change.exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    actor = -torch.minimum(ratio * advantage, bounded * advantage).mean()
    near = old_values + (values - old_values).clamp(-epsilon, epsilon)
    value = torch.maximum((values - returns).square(), (near - returns).square()).mean()
    outside = ((ratio - 1).abs() > epsilon).float().mean()
    divergence = (ratio.detach() - 1 - change.detach()).mean()
    return Objective(actor + value_weight * value, actor, value, outside, divergence)


def parameter_groups(
    actor: nn.Module, value: ValueHead, actor_rate: float = ACTOR_RATE, value_rate: float = VALUE_RATE
) -> list[dict[str, object]]:
    """What an optimizer of the RL stage takes: the policy moves carefully, the value head quickly."""
    return [
        {"params": [parameter for parameter in actor.parameters() if parameter.requires_grad], "lr": actor_rate},
        {"params": list(value.parameters()), "lr": value_rate},
    ]
