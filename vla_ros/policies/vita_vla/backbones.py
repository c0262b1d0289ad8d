"""The student's vision-language model: frozen vision that makes tokens of pictures, and the language model that reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.vita_vla.eyes import ConvolutionalEyes
from vla_ros.policies.vlms.pixels import IMAGENET, Pixels, prepare
from vla_ros.policies.vlms.presets import SIZES, configuration, load_model, need_transformers

if TYPE_CHECKING:
    from transformers import DynamicCache

    from vla_ros.policies.vita_vla.seer import Seer

BACKBONES = {
    "internvl_qwen2_5": "vla_ros.policies.vita_vla.backbones:InternVlQwen",
    "convolutional": "vla_ros.policies.vita_vla.backbones:ConvolutionalQwen",
}


class Backbone(nn.Module, ABC):
    """Base: `vision` never learns; `language` is a Qwen2.5 without its head."""

    vision: nn.ModuleDict
    language: nn.Module

    @property
    def hidden_size(self) -> int:
        return self.language.config.hidden_size

    @abstractmethod
    def look(self, images: Tensor, tokens: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """Returns image tokens [B, C * n, hidden_size].

        Args:
            images: float [B, C, 3, H, W] in [-1, 1].
            tokens: int64 [B, L], the instruction.
            cameras: names of the C views.
        """

    def adopt(self, teacher: Seer) -> None:
        """Takes over what of the teacher stands in for pretraining."""

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, hidden_size]."""
        return self.language.get_input_embeddings()(tokens)

    def run(self, embeds: Tensor, seen: Tensor, positions: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Returns the last states [B, N, hidden_size].

        Args:
            embeds: [B, N, hidden_size].
            seen: bool [B, N, M + N]: which key each query sees; M keys are in the cache.
            positions: int64 [B, N].
            cache: gets this sequence's keys and values too.
        """
        dtype = self.language.get_input_embeddings().weight.dtype
        blocked = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        output = self.language(
            inputs_embeds=embeds.to(dtype),
            attention_mask=blocked,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    @staticmethod
    def new_cache() -> DynamicCache:
        return need_transformers().DynamicCache()


class InternVlQwen(Backbone):
    """InternViT and Qwen2.5. A picture of 200 px is 14 x 14 patches, of which the connector makes 7 x 7 tokens.

    The connector is that of transformers: a LayerNorm and two Linears, where the paper counts three layers.
    """

    SIZES: Mapping[str, object] = {key: value for key, value in SIZES.items() if key != "use_state"} | {"image_size": 200}

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__()
        model = load_model("internvl_qwen2_5", sizes).model
        self.vision = nn.ModuleDict({"tower": model.vision_tower, "connector": model.multi_modal_projector})
        self.language = model.language_model
        self._model = [model]  # out of sight: its parts are registered already
        patch, size = model.config.vision_config.patch_size[0], int(sizes["image_size"])
        side, merge = size // patch, round(1 / model.config.downsample_ratio)
        if side < merge or side % merge:
            raise PolicyError(f"network.image_size = {size}: {side} patches of {patch} px a side, expected a multiple of {merge}")
        self._pixels = Pixels(size, *IMAGENET)

    def look(self, images: Tensor, tokens: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """See `Backbone.look`; all cameras share one tower, which knows no words."""
        pixels = prepare(images.flatten(0, 1), self._pixels)
        return self._model[0].get_image_features(pixels).pooler_output.unflatten(0, images.shape[:2]).flatten(1, 2)


class ConvolutionalQwen(Backbone):
    """For training from scratch without a GPU: the teacher's eyes instead of pretrained ones, a small Qwen2.5.

    Its connector is orthogonal: it is as frozen as a pretrained one, and nothing that the eyes see may get lost in it.
    """

    SIZES: Mapping[str, object] = {**ConvolutionalEyes.SIZES, "text": {}}

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__()
        eyes = ConvolutionalEyes(cameras, sizes)
        config = configuration("internvl_qwen2_5", {"preset": "tiny", "vision": {}, **sizes}).text_config
        config.initializer_range = sizes["text"].get("initializer_range", config.hidden_size**-0.5)  # untrained it must mix what it reads
        self.language = need_transformers().AutoModel.from_config(config)
        connector = nn.ModuleList(nn.Linear(eyes.width, config.hidden_size) for _ in cameras)
        for linear in connector:
            nn.init.orthogonal_(linear.weight)
        self.vision = nn.ModuleDict({"tower": eyes, "connector": connector})

    def look(self, images: Tensor, tokens: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """See `Backbone.look`; one token a view, which the instruction has a say in."""
        eyes, connector = self.vision["tower"], self.vision["connector"]
        seen = eyes.look(images, eyes.read(tokens), cameras)
        # A keypoint must stay exact to a tenth of a pixel, which bfloat16 cannot hold.
        with torch.autocast(images.device.type, enabled=False):
            views = [connector[eyes.names.index(name)](seen[:, i].to(connector[0].weight.dtype)) for i, name in enumerate(cameras)]
        return torch.cat(views, dim=1)

    def adopt(self, teacher: Seer) -> None:
        """Takes over the eyes. Raises PolicyError: they have other sizes."""
        own = self.vision["tower"]
        theirs, ours = ({name: tuple(tensor.shape) for name, tensor in eyes.state_dict().items()} for eyes in (teacher.eyes, own))
        if theirs != ours:
            raise PolicyError(
                "the teacher's eyes do not fit backbone convolutional: train a teacher with eyes: convolutional and the same text_width "
                "and keypoints"
            )
        own.load_state_dict(teacher.eyes.state_dict())
