"""The small reader: convolutional camera encoders, words and proprioception as a short sequence that the action expert attends to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_ros.policies.backbones import ConvolutionalBackbone


class Encoding(NamedTuple):
    """`hidden` [B, H] and `visual` [B, V] for the auxiliary losses, `sequence` [B, N, W] with `mask` bool [B, N] for the action expert."""

    hidden: Tensor
    visual: Tensor
    sequence: Tensor
    mask: Tensor


class SmallReader(nn.Module):
    """One encoder a camera name, so that robots share the weights of the cameras that they share; what a robot lacks reads as zero.

    Args:
        cameras: all names, of all robots.
        state_width: features of the widest robot, others are padded with zeros.
        sizes: of `ConvolutionalBackbone`.
    """

    def __init__(self, cameras: Iterable[str], state_width: int, sizes: dict[str, object]) -> None:
        super().__init__()
        self.names = tuple(sorted(set(cameras)))
        self.network = ConvolutionalBackbone(cameras=len(self.names), state_width=state_width, **sizes)
        self.width, self.hidden_size, self.visual_size = self.network.hidden_size, self.network.hidden_size, self.network.visual_size
        encoders = self.network.cameras
        self.read_cameras = nn.ModuleList([nn.Linear(encoder.width, self.width) for encoder in encoders])
        self.read_text = nn.Linear(self.network.read_text.in_features, self.width)

    def encode(self, images: Tensor | None, cameras: tuple[str, ...], state: Tensor, tokens: Tensor) -> Encoding:
        """Returns the encoding.

        Args:
            images: [B, C, 3, H, W] in the order of `cameras`, None: none at all.
            cameras: names.
            state: [B, state_width].
            tokens: int64 [B, L].
        """
        text = self.network.text(tokens)
        seen = {} if images is None else {name: self._encoder(name)(images[:, i], text).float() for i, name in enumerate(cameras)}
        # A keypoint must stay exact to a tenth of a pixel, which bfloat16 cannot hold.
        with torch.autocast(state.device.type, enabled=False):
            text = text.float()
            visual = [
                seen.get(name, text.new_zeros(len(text), encoder.width))
                for name, encoder in zip(self.names, self.network.cameras, strict=True)
            ]
            hidden, visual = self.network._read(torch.cat(visual, -1), state, text)
            views = [self.read_cameras[self.names.index(name)](features) for name, features in seen.items()]
            sequence = torch.stack([hidden, self.read_text(text), *views], 1)
        return Encoding(hidden, visual, sequence, sequence.new_ones(sequence.shape[:2], dtype=torch.bool))

    def _encoder(self, name: str) -> nn.Module:
        return self.network.cameras[self.names.index(name)]
