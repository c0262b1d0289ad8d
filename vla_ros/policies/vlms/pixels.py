"""From frames in [-1, 1] to what a pretrained vision tower expects, on tensors alone (torchvision is not needed)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Pixels(NamedTuple):
    """Side of the square image in px; mean and standard deviation of the channels that the tower was trained with, for 0 .. 1."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def prepare(images: Tensor, pixels: Pixels) -> Tensor:
    """Scales float [N, 3, H, W] in [-1, 1] to [N, 3, size, size] of the tower's own range.

    The whole view is kept and squashed, as RoboVLMs does: what is cut off at the sides is where a robot's objects lie.
    """
    if images.shape[-2:] != (pixels.size, pixels.size):
        images = functional.interpolate(images, (pixels.size, pixels.size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None] for values in (pixels.mean, pixels.std))
    return ((images + 1) / 2 - mean) / std
