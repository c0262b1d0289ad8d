"""The network's own loss, and where the objects are: without the latter a tiny policy does not learn to look."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_ros.policies.network import Batch
from vla_ros.training.config import LossWeights
from vla_ros.training.demonstrations import OBJECTS


class Objective(nn.Module):
    """A network with the two auxiliary read-outs that only training needs: they are not shipped."""

    def __init__(self, network: nn.Module, weights: LossWeights) -> None:
        super().__init__()
        self.network, self.weights = network, weights
        self.all_objects = self.task_objects = None
        if network.visual_size and weights.all_objects:
            self.all_objects = nn.Sequential(nn.Linear(network.visual_size, 256), nn.GELU(), nn.Linear(256, 3 * len(OBJECTS)))
        if network.hidden_size and weights.task_objects:
            self.task_objects = nn.Linear(network.hidden_size, 3 * 2)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its parts; `object_error` (no part of it) is the mean distance of what is to be moved, normalised."""
        loss, parts, visual, hidden = self.network.loss(batch)
        parts = dict(parts)
        if batch.images is None:
            return loss, parts
        if self.all_objects is not None:
            everything = self.all_objects(visual).float().unflatten(-1, (len(OBJECTS), 3))
            parts["all_objects"] = _distance(everything, batch.objects)
            loss = loss + self.weights.all_objects * parts["all_objects"]
        if self.task_objects is not None:
            task = self.task_objects(hidden).float().unflatten(-1, (2, 3))
            wanted = target_positions(batch.objects, batch.roles)
            parts["task_objects"] = _distance(task, wanted)
            loss = loss + self.weights.task_objects * parts["task_objects"]
            parts["object_error"] = (task - wanted).detach()[:, 0].norm(dim=-1).nanmean()
        return loss, parts


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error where there is something."""
    there = wanted.isfinite()
    return ((found - wanted.nan_to_num()).abs() * there).sum() / there.sum().clamp(min=1)


def target_positions(objects: Tensor, roles: Tensor) -> Tensor:
    """Picks what to move and where to: objects [B, O, 3], roles [B, 2] -> [B, 2, 3]."""
    return objects.gather(1, roles.long()[:, :, None].expand(-1, -1, objects.shape[-1]))


class Average:
    """Exponential moving average of what is learnt in a module; early steps forget faster so that the start does not linger.

    `weights` holds the floating-point entries of its state that are not frozen.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        frozen = {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
        self.weights = {
            name: tensor.detach().clone()
            for name, tensor in module.state_dict().items()
            if name not in frozen and tensor.is_floating_point()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        for name, weight in self.weights.items():
            weight.lerp_(state[name], 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Continues from `weights`. Raises KeyError when one is missing."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
