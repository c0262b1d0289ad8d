"""A Prismatic model: DINOv2 and SigLIP see the same patches, their features are fused, projected and read by a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.vlms.decoder_only import DecoderOnly
from vla_ros.policies.vlms.pixels import IMAGENET, Pixels, prepare
from vla_ros.policies.vlms.presets import SPARE_IDS, need_transformers

_UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # 0 .. 1, from which each tower goes on by itself
_TINY_TOWER = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}
_TINY_TOWER |= {"patch_size": 16}
# Parts by preset: (model_type, sizes). The language model is Qwen2.5-0.5B with 24 layers, as in MoL-MSM and VLA-Adapter.
_PARTS: dict[str, dict[str, tuple[str, dict[str, object]]]] = {
    "paper": {
        "dinov2": ("dinov2_with_registers", {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518, "num_register_tokens": 4,
        }),
        "siglip": ("siglip_vision_model", {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14,
            "vision_use_head": False,
        }),
        "language": ("qwen2", {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "vocab_size": 151936, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": True,
        }),
    },
    "tiny": {
        "dinov2": ("dinov2_with_registers", {key: value for key, value in _TINY_TOWER.items() if key != "intermediate_size"} | {
            "mlp_ratio": 2, "num_register_tokens": 2,
        }),
        "siglip": ("siglip_vision_model", {**_TINY_TOWER, "vision_use_head": False}),
        "language": ("qwen2", {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": True,
        }),
    },
}  # fmt: skip


class Prismatic(DecoderOnly):
    """No class of transformers holds it. `folder` has its parts: `dinov2/`, `siglip/`, `language/` and `projector.safetensors`."""

    family = "prismatic"

    def _load(self, sizes: Mapping[str, object], vocabulary_head: bool) -> None:
        if sizes["preset"] not in _PARTS:
            raise PolicyError(f"network.preset = {sizes['preset']!r}; {did_you_mean(str(sizes['preset']), _PARTS)}")
        parts = {name: self._part(name, sizes) for name in ("dinov2", "siglip", "language")}
        rows = parts["language"].get_input_embeddings().weight.shape[0]
        if int(sizes["vocabulary"]) > rows:
            raise PolicyError(f"network.vocabulary = {sizes['vocabulary']}, the language model has {rows} ids: use its tokenizer.json")
        fused = parts["dinov2"].config.hidden_size + parts["siglip"].config.hidden_size
        width = parts["language"].config.hidden_size
        projector = nn.Sequential(nn.Linear(fused, 4 * fused), nn.GELU(), nn.Linear(4 * fused, width), nn.GELU(), nn.Linear(width, width))
        self.vlm = nn.ModuleDict({**parts, "projector": projector})
        tied = parts["language"].config.tie_word_embeddings
        self.lm_head = nn.Linear(width, rows, bias=False) if vocabulary_head and not tied else None
        if sizes["folder"]:
            self._read_projector(Path(str(sizes["folder"])).expanduser() / "projector.safetensors")

    def _part(self, name: str, sizes: Mapping[str, object]) -> nn.Module:
        transformers = need_transformers()
        if sizes["folder"]:
            path = Path(str(sizes["folder"])).expanduser() / name
            if not (path / "config.json").is_file():
                raise PolicyError(f"network.folder: {path / 'config.json'}: no such file; a Prismatic folder has {name}/")
            load = transformers.SiglipVisionModel if name == "siglip" else transformers.AutoModel
            return load.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        kind, values = _PARTS[str(sizes["preset"])][name]
        values = dict(values) | dict(sizes["text"] if name == "language" else sizes["vision"])
        if name == "language" and sizes["preset"] == "tiny":
            values.setdefault("vocab_size", int(sizes["vocabulary"]) + SPARE_IDS)
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **values))

    def _read_projector(self, path: Path) -> None:
        from safetensors.torch import load_file

        if not path.is_file():
            raise PolicyError(f"{path}: no such file; it holds the projector's six tensors 0.weight .. 4.bias")
        self.vlm["projector"].load_state_dict(load_file(path))

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return self.vlm["language"].config.num_hidden_layers

    def _embedding(self) -> nn.Embedding:
        return self.vlm["language"].get_input_embeddings()

    def _pixels(self) -> Pixels:
        return Pixels(self.vlm["siglip"].config.image_size, *_UNIT)

    def _features(self, pixels: Tensor) -> Tensor:
        """Each tower has its own mean; features of the last but one layer, patches only."""
        dinov2, siglip = self.vlm["dinov2"], self.vlm["siglip"]
        plain, dtype = prepare(2 * pixels - 1, Pixels(pixels.shape[-1], *IMAGENET)), pixels.dtype
        fine = dinov2(plain.to(dtype), output_hidden_states=True).hidden_states[-2]
        fine = fine[:, 1 + dinov2.config.num_register_tokens :]
        seen = siglip(2 * pixels - 1, output_hidden_states=True).hidden_states[-2]
        return self.vlm["projector"](torch.cat([fine, seen], dim=-1))

    def _language(self, embeds: Tensor, mask: Tensor, steps: Tensor | None, positions: Tensor, **options: object) -> object:
        return self.vlm["language"](inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, **options)
