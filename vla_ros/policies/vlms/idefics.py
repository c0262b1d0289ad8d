"""Idefics, the open Flamingo: the language model reads words and [LRN] alone and looks at the images by gated cross-attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.backbone import Encoding
from vla_ros.policies.vlms.pixels import CLIP, Pixels, prepare
from vla_ros.policies.vlms.presets import SIZES, load_model


class Idefics(nn.Module):
    """Encoder-decoder in the paper's words: observations cannot be interleaved with [LRN]s."""

    SIZES: Mapping[str, object] = SIZES
    decoder_only = False
    generates = True

    def __init__(self, cameras: tuple[str, ...], state_width: int, sizes: Mapping[str, object], vocabulary_head: bool = False) -> None:
        super().__init__()
        model = load_model("idefics", sizes)
        self.cameras = tuple(cameras)
        self.vlm, self.lm_head = model.model, model.lm_head if vocabulary_head else None
        config = model.config
        self.vocabulary_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.visual_size = config.vision_config.embed_dim * len(self.cameras)
        self.pixels = Pixels(config.vision_config.image_size, *CLIP)
        self.lrn = nn.Parameter(0.02 * torch.randn(self.hidden_size))
        self.read_state = nn.Linear(state_width, self.hidden_size) if state_width and sizes["use_state"] else None

    def encode(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """See `backbone.Backbone`."""
        return self._read(*self._look(images, cameras), state, tokens, tokens[:, :0])

    def interleave(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...]) -> Encoding:
        """Raises PolicyError: the images are not in the sequence."""
        raise PolicyError("idefics reads images by cross-attention: observations and [LRN]s cannot be interleaved; use policy_head")

    def score(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], ids: Tensor) -> tuple[Tensor, Encoding]:
        """See `backbone.Backbone`."""
        encoding = self._read(*self._look(images, cameras), state, tokens, ids)
        return self._logits(encoding, ids.shape[1] + 1), encoding

    @torch.no_grad()
    def generate(self, images: Tensor, state: Tensor | None, tokens: Tensor, cameras: tuple[str, ...], count: int, ids: range) -> Tensor:
        """See `backbone.Backbone`. The images are looked at once, the words are read anew for each id."""
        features, visual = self._look(images, cameras)
        chosen = tokens[:, :0]
        while chosen.shape[1] < count:
            logits = self._logits(self._read(features, visual, state, tokens, chosen), 1)
            chosen = torch.cat([chosen, logits[:, :, ids.start : ids.stop].argmax(-1) + ids.start], dim=1)
        return chosen

    def _look(self, images: Tensor, cameras: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Returns the tower's states [B, C, n, V] and `Encoding.visual`."""
        pixels = prepare(images.flatten(0, 1), self.pixels).to(self.vlm.dtype)
        states = self.vlm.vision_model(pixel_values=pixels).last_hidden_state.unflatten(0, images.shape[:2])
        means = states.float().mean(2)
        absent = torch.zeros_like(means[:, 0])
        return states, torch.cat([means[:, cameras.index(name)] if name in cameras else absent for name in self.cameras], dim=-1)

    def _read(self, features: Tensor, visual: Tensor, state: Tensor | None, tokens: Tensor, ids: Tensor) -> Encoding:
        """`hidden` is [LRN]'s, `sequence` goes on to the last of `ids`."""
        count = len(tokens)
        embeds, masks = [self.vlm.embed_tokens(tokens)], [tokens != PAD_ID]
        if state is not None and self.read_state is not None:
            embeds.append(self.read_state(state.to(self.read_state.weight.dtype))[:, None].to(embeds[0].dtype))
        embeds += [self.lrn.expand(count, 1, -1).to(embeds[0].dtype), self.vlm.embed_tokens(ids)]
        masks.append(masks[0].new_ones(count, sum(part.shape[1] for part in embeds[1:])))
        mask, sequence = torch.cat(masks, dim=1), torch.cat(embeds, dim=1)
        output = self.vlm(
            inputs_embeds=sequence,
            attention_mask=mask.long(),
            image_encoder_embeddings=features,
            image_attention_mask=torch.ones(*mask.shape, features.shape[1], dtype=torch.long, device=mask.device),
            use_cache=False,
        )
        states = output.last_hidden_state.float()
        return Encoding(states[:, -1 - ids.shape[1]], visual, states, mask)

    def _logits(self, encoding: Encoding, count: int) -> Tensor:
        return self.lm_head(encoding.sequence[:, -count:].to(self.lm_head.weight.dtype)).float()
