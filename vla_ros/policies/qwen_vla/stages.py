"""The stages in which Qwen-VLA is trained: what learns, what is seen, and where tau lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_ros.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from vla_ros.policies.qwen_vla.network import QwenVla


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        backbone: whether it learns.
        images: whether there are any; without them the action expert learns what language alone says about motion.
        tau: key of `flow.TAU_SAMPLERS`.
        text_weight: of the cross-entropy of the text, where the backbone has a language head.
        horizon: rows of a chunk; None: whole trajectories, padded with NaN rows to the longest of a batch.
    """

    backbone: bool
    images: bool
    tau: str
    text_weight: float
    horizon: int | None


STAGES = {
    "t2a": Stage(backbone=False, images=False, tau="sigmoid_normal", text_weight=0.0, horizon=None),
    "cpt": Stage(backbone=True, images=True, tau="beta", text_weight=0.0, horizon=16),
    "sft": Stage(backbone=True, images=True, tau="beta", text_weight=0.1, horizon=16),
}


def configure_stage(network: QwenVla, stage: str) -> Stage:
    """Makes `network` ready for a stage: `requires_grad`, the sampler of tau, whether it takes images. Raises ConfigError."""
    if stage not in STAGES:
        raise ConfigError(f"stage '{stage}'; {did_you_mean(stage, STAGES)}")
    network.stage = STAGES[stage]
    network.backbone.requires_grad_(network.stage.backbone)
    network.expert.requires_grad_(True)
    return network.stage
