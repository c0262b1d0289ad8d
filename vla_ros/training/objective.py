"""The loss: chunk, gripper, and where the objects are. Without the object losses a tiny policy does not learn to look."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.robovlms import RoboVlmsNetwork
from vla_ros.training.config import LossWeights
from vla_ros.training.dataset import Batch, target_positions
from vla_ros.training.demonstrations import OBJECTS


class Objective(nn.Module):
    """A network with the two auxiliary read-outs that only training needs: they are not shipped."""

    def __init__(self, network: RoboVlmsNetwork, weights: LossWeights) -> None:
        super().__init__()
        self.network, self.weights = network, weights
        visual, hidden = network.backbone.visual_size, network.backbone.hidden_size
        self.all_objects = nn.Sequential(nn.Linear(visual, 256), nn.GELU(), nn.Linear(256, 3 * len(OBJECTS)))
        self.task_objects = nn.Linear(hidden, 3 * 2)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its parts; `block` [B] is the error of the target block in units of `objects`."""
        pose, closed, encoding = self.network(batch.images, batch.state, batch.tokens)
        task = self.task_objects(encoding.hidden).float().unflatten(-1, (2, 3))
        wanted = target_positions(batch.objects, batch.roles)
        everything = self.all_objects(encoding.visual).float().unflatten(-1, (len(OBJECTS), 3))
        parts = {
            "chunk": (pose - batch.pose).abs().mean(),
            "gripper": functional.binary_cross_entropy_with_logits(closed, batch.closed),
            "task_objects": (task - wanted).abs().mean(),
            "all_objects": (everything - batch.objects).abs().mean(),
        }
        loss = sum(getattr(self.weights, name) * part for name, part in parts.items())
        return loss, {**parts, "block": (task - wanted).detach()[:, 0]}


class Average:
    """Exponential moving average of a module's weights; early steps forget faster so that the start does not linger."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            self.weights[name].lerp_(tensor, 1 - decay)
