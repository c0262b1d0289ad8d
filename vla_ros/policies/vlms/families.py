"""Kosmos-2, PaliGemma, LLaVA and InternVL with Qwen2.5: how each one's tower and language model are called."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla_ros.policies.vlms.decoder_only import DecoderOnly
from vla_ros.policies.vlms.pixels import CLIP, IMAGENET, SIGLIP, Pixels
from vla_ros.policies.vlms.presets import load_model


class Kosmos2(DecoderOnly):
    """64 latent queries a view (Kosmos-2: RoboVLMs' best backbone)."""

    family = "kosmos2"
    delimiters = (64003,), (64004,)  # <image>, </image>

    def _load(self, sizes: Mapping[str, object], vocabulary_head: bool) -> None:
        self.vlm, self.lm_head = load_model(self.family, sizes), None
        head = self.vlm.text_model.lm_head
        if vocabulary_head and head.weight is not self.vlm.text_model.model.embed_tokens.weight:
            self.lm_head = head
        self.vlm.text_model.lm_head = None

    def _embedding(self) -> nn.Embedding:
        return self.vlm.text_model.model.embed_tokens

    def _pixels(self) -> Pixels:
        return Pixels(self.vlm.config.vision_config.image_size, *CLIP)

    def _features(self, pixels: Tensor) -> Tensor:
        states = self.vlm.vision_model(pixel_values=pixels, return_dict=True).last_hidden_state
        states = nn.functional.normalize(self.vlm.vision_model.model.post_layernorm(states), dim=-1)
        return self.vlm.image_to_text_projection(states)[0]

    def _language(self, embeds: Tensor, mask: Tensor, steps: Tensor | None, positions: Tensor, **options: object) -> object:
        transformer = self.vlm.text_model.model
        first = transformer.embed_positions.padding_idx + 1  # its table of positions begins behind the padding's
        return transformer(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions + first, **options)


class PaliGemma(DecoderOnly):
    """SigLIP and Gemma; images and words see each other in both directions."""

    family = "paligemma"

    def _pixels(self) -> Pixels:
        return Pixels(self.vlm.config.vision_config.image_size, *SIGLIP)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.vlm.get_image_features(pixels).pooler_output

    def _language(self, embeds: Tensor, mask: Tensor, steps: Tensor | None, positions: Tensor, **options: object) -> object:
        seen = mask[:, None, None, :]
        if steps is not None:
            seen = seen & (steps[None, :] <= steps[:, None])
            # A padded row that sees nothing would be NaN; nobody reads it.
            seen = seen | torch.eye(len(steps), dtype=torch.bool, device=mask.device)
        blocked = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device)
        blocked = blocked.masked_fill(~seen, torch.finfo(embeds.dtype).min)
        return self.vlm.language_model(inputs_embeds=embeds, attention_mask=blocked, position_ids=positions, **options)


class Llava(DecoderOnly):
    """CLIP and Vicuna (LLaVA 1.5)."""

    family = "llava"

    def _pixels(self) -> Pixels:
        return Pixels(self.vlm.config.vision_config.image_size, *CLIP)

    def _features(self, pixels: Tensor) -> Tensor:
        return torch.stack(self.vlm.get_image_features(pixels).pooler_output)


class InternVl(DecoderOnly):
    """InternViT and Qwen2.5, as in VITA."""

    family = "internvl_qwen2_5"
    delimiters = (151665,), (151666,)  # <img>, </img>

    def _pixels(self) -> Pixels:
        return Pixels(self.vlm.config.vision_config.image_size[0], *IMAGENET)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.vlm.get_image_features(pixels).pooler_output
