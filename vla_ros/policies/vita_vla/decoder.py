"""From the states of action tokens to actions: the decoder and heads that the teacher hands down to its student."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vla_ros.policies.vita_vla.channels import Channels


class ActionDecoder(nn.Module):
    """Two layers d -> d / 2, then a tanh head for the arms and a sigmoid head for the grippers."""

    def __init__(self, channels: Channels, width: int) -> None:
        super().__init__()
        half = width // 2
        self.layers = nn.Sequential(nn.Linear(width, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU())
        self.arm, self.gripper = nn.Linear(half, channels.arms.width), nn.Linear(half, channels.grippers.width)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[..., d] -> arms [..., A] in -1 .. 1 and logits of closing [..., G], for all embodiments."""
        decoded = self.layers(states.to(self.arm.weight.dtype))
        return self.arm(decoded).float().tanh(), self.gripper(decoded).float()


def action_loss(arms: Tensor, closing: Tensor, targets: tuple[Tensor, Tensor], gripper_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 of the arms [..., A] + `gripper_weight` * binary cross-entropy of the logits of closing [..., G]; see `Channels.targets`."""
    parts = {"arm": functional.l1_loss(arms, targets[0]), "gripper": functional.binary_cross_entropy_with_logits(closing, targets[1])}
    return parts["arm"] + gripper_weight * parts["gripper"], parts
