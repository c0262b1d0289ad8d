"""Qwen3.5: linear and full attention mixed, rotary positions in time, height and width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vla_ros.policies.vlms.decoder_only import DecoderOnly, Part
from vla_ros.policies.vlms.pixels import SIGLIP, Pixels


class Qwen35(DecoderOnly):
    """A view of `size` px has (size / patch / merge)^2 tokens, between <|vision_start|> and <|vision_end|>."""

    SIZES: Mapping[str, object] = {**DecoderOnly.SIZES, "image_size": 0}  # px, 0: 64 for the tiny preset, 224 else
    family = "qwen3_5"

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object], vocabulary_head: bool = False) -> None:
        tiny = sizes["preset"] == "tiny" and not sizes["folder"]
        self._size = int(sizes["image_size"]) or (64 if tiny else 224)
        super().__init__(cameras, state_width, sizes, vocabulary_head)
        self.delimiters = (self.vlm.config.vision_start_token_id,), (self.vlm.config.vision_end_token_id,)

    def _pixels(self) -> Pixels:
        unit = self.vlm.visual.patch_size * self.vlm.visual.spatial_merge_size
        return Pixels(max(1, round(self._size / unit)) * unit, *SIGLIP)

    def _features(self, pixels: Tensor) -> Tensor:
        vision = self.vlm.visual
        side, merge = self.pixels.size // vision.patch_size, vision.spatial_merge_size
        patches = patchify(pixels, vision.patch_size, merge, vision.config.temporal_patch_size)
        grid = torch.tensor([[1, side, side]]).repeat(len(pixels), 1)
        return torch.stack(self.vlm.get_image_features(patches, grid.to(pixels.device)).pooler_output)

    def _positions(self, parts: list[Part]) -> Tensor:
        """[4, B, N]: place in the text, then time, height, width; an image takes as many places as its longer side has tokens."""
        start = parts[0].mask.new_zeros(len(parts[0].mask), dtype=torch.long)
        stretches = []
        for part in parts:
            if part.grid is None:
                places = start[:, None] + (part.mask.long().cumsum(1) - 1).clamp(min=0)
                stretches.append(places.expand(3, -1, -1))
                start = start + part.mask.sum(1)
                continue
            rows, columns = part.grid
            across = torch.arange(rows * columns, device=start.device)
            offsets = torch.stack([torch.zeros_like(across), across // columns, across % columns])
            stretches.append(start[None, :, None] + offsets[:, None])
            start = start + max(part.grid)
        return torch.cat([super()._positions(parts)[None], torch.cat(stretches, dim=2)])

    def _language(self, embeds: Tensor, mask: Tensor, steps: Tensor | None, positions: Tensor, **options: object) -> object:
        """Padding goes to the front meanwhile: between tokens it would let the linear layers' recurrence forget."""
        order = mask.long().argsort(dim=1, stable=True)
        mask = mask.gather(1, order)
        if steps is None:  # one token goes on from a cache that is in this order
            return super()._language(embeds, mask, steps, positions, **options)
        positions = positions.gather(2, order.expand(len(positions), -1, -1))
        output = super()._language(_picked(embeds, order), mask, steps, positions, **options)
        back = order.argsort(dim=1)
        output.last_hidden_state = _picked(output.last_hidden_state, back)
        if output.hidden_states is not None:
            output.hidden_states = tuple(_picked(states, back) for states in output.hidden_states)
        return output


def _picked(values: Tensor, order: Tensor) -> Tensor:
    """[B, N, W] in the order [B, N]."""
    return values.gather(1, order[..., None].expand_as(values))


def patchify(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Cuts [N, 3, S, S] into rows [N * (S / patch)^2, 3 * frames * patch^2], the patches that will be merged side by side.

    A still image is shown `frames` times, as the tower wants time steps in pairs.
    """
    count, channels, size, _ = pixels.shape
    cells = size // patch // merge
    cut = pixels.reshape(count, channels, cells, merge, patch, cells, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [N, row, column, row within, column within, channel, y, x]
    cut = cut.unsqueeze(6).expand(*(-1,) * 6, frames, -1, -1)
    return cut.reshape(count * cells * cells * merge * merge, channels * frames * patch * patch)
