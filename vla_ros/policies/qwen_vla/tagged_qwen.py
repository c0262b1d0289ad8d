"""Qwen3.5 as Qwen-VLA uses it: every picture between the two tags of its camera, or no picture at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.policies.qwen_vla.reader import Reading
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.decoder_only import Part
from vla_ros.policies.vlms.qwen import Qwen35


class TaggedQwen35(Qwen35):
    """The tags `<|ego_start|>`, `<|ego_end|>`, ... are words that the pretrained model does not know: a learnt embedding for each."""

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object]) -> None:
        super().__init__(cameras, state_width, sizes, vocabulary_head=True)
        self.tags = nn.Parameter(0.02 * torch.randn(len(cameras), 2, self.hidden_size))

    def read(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], answer: Tensor | None = None) -> Reading:
        """See `reader.SmallReader.read`."""
        parts, visual = self._observation(images, state, tokens, cameras)
        mask = torch.cat([part.mask for part in parts], 1)
        count, last = mask.shape[1], parts[-1].step
        if answer is not None:
            parts.append(Part(self._embed(answer), answer != PAD_ID, last + 1))
        states = self._run(parts).last_hidden_state
        positions = self._positions(parts)[1:, :, :count].transpose(0, 1)  # the first of the four is the place in the text
        seen = states[:, :count].float()
        logits = None if answer is None else self._vocabulary(states[:, count - 1 :])
        return Reading(seen[:, -1], visual, seen, mask, positions, logits)

    def _observation(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> tuple[list[Part], Tensor]:
        if images.shape[1]:
            features = self._look(images)
            views, visual = self._tagged(features, cameras), self._pooled(features, cameras)
        else:
            views, visual = [], self.lrn.new_zeros(len(tokens), self.visual_size)
        parts = [*views, self._words(tokens, 0), *self._proprioception(state, 0), self._learnable(len(tokens), 1)]
        return parts, visual

    def _tagged(self, features: Tensor, cameras: tuple[str, ...]) -> list[Part]:
        shown = self._views(features, 0)
        each = len(shown) // len(cameras)
        parts = []
        for i, camera in enumerate(cameras):
            start, end = (self._tag(tag, len(features)) for tag in self.tags[self.cameras.index(camera)])
            parts += [start, *shown[i * each : (i + 1) * each], end]
        return parts

    def _tag(self, embedding: Tensor, batch: int) -> Part:
        return Part(embedding.expand(batch, 1, -1), torch.ones(batch, 1, dtype=torch.bool, device=embedding.device), 0)
