"""What the teacher sees and reads: convolutions and a small word encoder, or ViT-MAE with a resampler and CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError
from vla_ros.policies.text import PAD_ID
from vla_ros.policies.vlms.backbone import REQUIRED
from vla_ros.policies.vlms.convolutional import CameraEncoder, TextEncoder
from vla_ros.policies.vlms.pixels import IMAGENET, Pixels, prepare
from vla_ros.policies.vlms.presets import need_transformers

EYES = {
    "convolutional": "vla_ros.policies.vita_vla.eyes:ConvolutionalEyes",
    "vit_mae": "vla_ros.policies.vita_vla.eyes:MaeEyes",
}


class ConvolutionalEyes(nn.Module):
    """An encoder for each camera, conditioned by the instruction: one token a view."""

    SIZES: Mapping[str, object] = {"vocabulary": REQUIRED, "text_length": REQUIRED, "text_width": 128, "keypoints": 32}
    tokens = 1

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__()
        self.names, self.text_width = cameras, int(sizes["text_width"])
        self.text = TextEncoder(int(sizes["vocabulary"]), self.text_width, int(sizes["text_length"]))
        self.cameras = nn.ModuleList(CameraEncoder(self.text_width, int(sizes["keypoints"])) for _ in cameras)
        self.width = self.cameras[0].width

    def read(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] -> [B, text_width]."""
        return self.text(tokens)

    def look(self, images: Tensor, text: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """Returns [B, C, tokens, width].

        Args:
            images: float [B, C, 3, H, W] in [-1, 1].
            text: [B, text_width].
            cameras: names of the C views.
        """
        views = [self.cameras[self.names.index(name)](images[:, i], text) for i, name in enumerate(cameras)]
        return torch.stack(views, dim=1)[:, :, None].float()


class MaeEyes(nn.Module):
    """ViT-MAE (base), of whose patches a resampler makes `tokens` a view; CLIP's text encoder. A tower from a folder stays frozen.

    CLIP's own words do not fit: teacher and student read the same ids. So without a folder its text encoder starts untrained.
    """

    SIZES: Mapping[str, object] = {
        "vocabulary": REQUIRED,
        "text_length": REQUIRED,
        "vision_folder": "",  # of a pretrained ViT-MAE
        "text_folder": "",  # of a pretrained CLIP text encoder
        "vision": {},  # deviations of the tower from ViT-MAE base
        "text": {},  # the same for CLIP's text encoder
        "latents": 9,  # tokens a view
        "resampler_layers": 3,
    }

    def __init__(self, cameras: tuple[str, ...], sizes: Mapping[str, object]) -> None:
        super().__init__()
        transformers = need_transformers()
        words = {"vocab_size": int(sizes["vocabulary"]), "max_position_embeddings": int(sizes["text_length"]), **sizes["text"]}
        self.tower = _part(
            transformers.ViTMAEModel, transformers.ViTMAEConfig, sizes["vision_folder"], {"mask_ratio": 0.0, **sizes["vision"]}
        )
        self.words = _part(transformers.CLIPTextModel, transformers.CLIPTextConfig, sizes["text_folder"], words)
        self.tower.config.mask_ratio = 0.0  # nothing is hidden from it here
        self.width, self.text_width = self.tower.config.hidden_size, self.words.config.hidden_size
        self.tokens, self.names = int(sizes["latents"]), cameras
        self.resampler = Resampler(self.width, self.tokens, int(sizes["resampler_layers"]))

    def read(self, tokens: Tensor) -> Tensor:
        """See `ConvolutionalEyes.read`: the mean over the words, as the end that CLIP pools is not marked in foreign ids."""
        mask = tokens != PAD_ID
        states = self.words(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def look(self, images: Tensor, text: Tensor, cameras: tuple[str, ...]) -> Tensor:
        """See `ConvolutionalEyes.look`; one tower for all cameras, which knows no words."""
        pixels = prepare(images.flatten(0, 1), Pixels(self.tower.config.image_size, *IMAGENET))
        patches = (self.tower.config.image_size // self.tower.config.patch_size) ** 2
        order = torch.arange(patches, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)  # keeps the patches in theirs
        seen = self.tower(pixel_values=pixels.to(self.tower.dtype), noise=order).last_hidden_state
        return self.resampler(seen).unflatten(0, images.shape[:2]).float()


def _part(model: type, config: type, folder: object, values: Mapping[str, object]) -> nn.Module:
    if not folder:
        return model(config(**values))
    path = Path(str(folder)).expanduser()
    if not (path / "config.json").is_file():
        raise PolicyError(f"{path / 'config.json'}: no such file; download the model into that folder first")
    loaded = model.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return loaded.requires_grad_(False)


class Resampler(nn.Module):
    """Learnable latents look at the patches, layer after layer: [B, N, width] -> [B, latents, width]."""

    def __init__(self, width: int, latents: int, layers: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(0.02 * torch.randn(latents, width))
        layer = nn.TransformerDecoderLayer(width, 8, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))

    def forward(self, patches: Tensor) -> Tensor:
        return self.layers(self.latents.expand(len(patches), -1, -1), patches)
