"""What the action expert attends to: a sequence of states of what an observation shows and says. `sizes.READERS` is the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.vlms.convolutional import ConvolutionalBackbone


class Reading(NamedTuple):
    """One observation, read.

    Args:
        hidden: [B, H], for the auxiliary losses.
        visual: [B, V], the same; every camera's features in its own columns.
        sequence: [B, N, H].
        mask: bool [B, N], False at padding.
        positions: int64 [B, 3, N] in time, height and width; None: one after the other.
        logits: [B, n + 1, vocabulary] of each word of an answer and of its end, None where there is no answer.
    """

    hidden: Tensor
    visual: Tensor
    sequence: Tensor
    mask: Tensor
    positions: Tensor | None = None
    logits: Tensor | None = None


class SmallReader(nn.Module):
    """The convolutional backbone: its state, which has seen everything, and then one token a camera with what that one shows."""

    SIZES = ConvolutionalBackbone.SIZES
    generates = False

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object]) -> None:
        super().__init__()
        self.network = ConvolutionalBackbone(cameras, max(state_width, 1), sizes)
        self.cameras = cameras
        self.hidden_size, self.visual_size = self.network.hidden_size, self.network.visual_size
        self.read_views = nn.ModuleList(nn.Linear(self.visual_size // len(cameras), self.hidden_size) for _ in cameras)

    def read(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], answer: Tensor | None = None) -> Reading:
        """Returns what was read.

        Args:
            images: float [B, C, 3, H, W] in [-1, 1]; C may be 0.
            state: float [B, state_width], None: it is not read.
            tokens: int64 [B, L], 0 where there is no word.
            cameras: names of the C views.
            answer: int64 [B, n], text that follows.

        Raises:
            PolicyError: for an answer, as there is no language model.
        """
        if answer is not None:
            raise PolicyError("the convolutional backbone has no language model: leave the answers out of the batch")
        encoding = self.network.encode(images, state, tokens, cameras)
        # A keypoint must stay exact to a tenth of a pixel, which bfloat16 cannot hold.
        with torch.autocast(tokens.device.type, enabled=False):
            features = encoding.visual.float().unflatten(-1, (len(self.cameras), -1))
            indices = [self.cameras.index(name) for name in cameras]
            views = [self.read_views[i](features[:, i])[:, None] for i in indices]
            sequence = torch.cat([encoding.sequence, *views], 1)
        mask = torch.cat([encoding.mask, encoding.mask.new_ones(len(tokens), len(views))], 1)
        return Reading(encoding.hidden, encoding.visual, sequence, mask)
