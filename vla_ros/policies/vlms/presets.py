"""Sizes of the vision-language models: "paper" as published, "tiny" to train from scratch on a CPU. Loading from a local folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from vla_ros.core.errors import NotInstalled, PolicyError, did_you_mean

# Room behind the words of a tiny vocabulary: 256 bins of discrete actions, 10 special ids, 6 to spare.
SPARE_IDS = 272
SIZES: Mapping[str, object] = {
    "preset": "tiny",  # or "paper"
    "folder": "",  # of a pretrained model; its config.json replaces the preset
    "vocabulary": 0,  # how many ids the tokenizer has
    "text": {},  # deviations of the language model from the preset
    "vision": {},  # the same for the vision tower
    "use_state": True,  # proprioception as one more token
}
_TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
_TEXT |= {"head_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_VISION = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
_QWEN2 = {key: value for key, value in _TEXT.items() if key != "head_dim"} | {"model_type": "qwen2", "tie_word_embeddings": True}

# name: (model_type, {preset: configuration}). "text" and "vision" name the parts of a configuration.
MODELS: dict[str, tuple[str, dict[str, dict[str, object]]]] = {
    "kosmos2": ("kosmos-2", {
        "paper": {"text_config": {}, "vision_config": {}},
        "tiny": {
            "text_config": {"embed_dim": 128, "ffn_dim": 256, "layers": 4, "attention_heads": 4, "dropout": 0.0, "attention_dropout": 0.0},
            "vision_config": _VISION, "latent_query_num": 16,
        },
    }),
    "paligemma": ("paligemma", {
        "paper": {  # google/paligemma-3b-pt-224; the defaults of transformers are a little smaller
            "text_config": {
                "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
                "num_key_value_heads": 1, "vocab_size": 257216,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False,
            },
            "image_token_index": 257152,
        },
        "tiny": {
            "text_config": {"model_type": "gemma", **_TEXT, "num_key_value_heads": 1},
            "vision_config": {"model_type": "siglip_vision_model", **_VISION, "vision_use_head": False},
            "hidden_size": 128, "projection_dim": 128,
        },
    }),
    "llava": ("llava", {
        "paper": {"text_config": {"model_type": "llama", "vocab_size": 32064}},
        "tiny": {
            "text_config": {"model_type": "llama", **_TEXT, "tie_word_embeddings": True},
            "vision_config": {"model_type": "clip_vision_model", **_VISION}, "image_seq_length": 16, "tie_word_embeddings": True,
        },
    }),
    "internvl_qwen2_5": ("internvl", {
        "paper": {
            "text_config": {
                "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674, "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": False,
            },
            "vision_config": {}, "tie_word_embeddings": False,
        },
        "tiny": {
            "text_config": _QWEN2,
            "vision_config": {**_VISION, "image_size": [64, 64], "patch_size": [8, 8]}, "image_seq_length": 16,
        },
    }),
    "qwen3_5": ("qwen3_5", {
        "paper": {
            "text_config": {"hidden_size": 2560, "intermediate_size": 9216, "tie_word_embeddings": True},
            "vision_config": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560},
            "tie_word_embeddings": True,
        },
        "tiny": {
            "text_config": {
                **_TEXT, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                "tie_word_embeddings": True,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                    "mrope_section": [4, 2, 2], "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "patch_size": 8, "out_hidden_size": 128,
                "num_position_embeddings": 64,
            },
            "tie_word_embeddings": True,
        },
    }),
    "idefics": ("idefics", {
        "paper": {
            "additional_vocab_size": 2, "cross_layer_interval": 4, "qk_layer_norms": True, "use_resampler": True,
            "vision_config": {"embed_dim": 1280}, "freeze_text_layers": False, "freeze_vision_layers": False,
        },
        "tiny": {
            **{key: value for key, value in _TEXT.items() if key not in ("head_dim", "num_key_value_heads")},
            "cross_layer_interval": 2, "freeze_text_layers": False, "freeze_vision_layers": False,
            "alpha_initializer": "ones",  # zeros spare a pretrained language model; from scratch they only hide the images at first
            "vision_config": {"embed_dim": 96, **{key: value for key, value in _VISION.items() if key != "hidden_size"}},
        },
    }),
}  # fmt: skip


def need_transformers() -> ModuleType:
    """Returns the package. Raises NotInstalled: only the convolutional backbone can do without it."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise NotInstalled(f"this backbone needs the Python module {error.name}: run `make setup`, or pip install transformers") from error
    return transformers


def configuration(name: str, sizes: Mapping[str, object]) -> object:
    """Returns the transformers configuration of `name`'s preset with the deviations in `sizes`."""
    kind, presets = MODELS[name]
    if sizes["preset"] not in presets:
        raise PolicyError(f"network.preset = {sizes['preset']!r}; {did_you_mean(str(sizes['preset']), presets)}")
    values = copy.deepcopy(presets[sizes["preset"]])
    text = values if name == "idefics" else values.setdefault("text_config", {})
    if sizes["preset"] == "tiny":
        words = int(sizes["vocabulary"])
        text["vocab_size"] = words + SPARE_IDS
        if name == "qwen3_5":
            values |= {"vision_start_token_id": words, "vision_end_token_id": words + 1}
    text.update(sizes["text"])
    values.setdefault("vision_config", {}).update(sizes["vision"])
    try:
        return need_transformers().AutoConfig.for_model(kind, **{key: value for key, value in values.items() if value != {}})
    except Exception as error:  # huggingface_hub's validation raises its own kinds
        raise PolicyError(f"network: {name} cannot have text {sizes['text']}, vision {sizes['vision']} ({error})") from error


def load_model(name: str, sizes: Mapping[str, object]) -> nn.Module:
    """Returns the model with its language head: pretrained from `sizes["folder"]`, else random of the preset.

    Raises:
        PolicyError: no such folder, another architecture, no safetensors, or a vocabulary smaller than the tokenizer's.
    """
    model = _pretrained(name, str(sizes["folder"])) if sizes["folder"] else None
    if model is None:
        model = need_transformers().AutoModelForImageTextToText.from_config(configuration(name, sizes))
    rows = model.get_input_embeddings().weight.shape[0]
    if int(sizes["vocabulary"]) > rows:
        raise PolicyError(f"network.vocabulary = {sizes['vocabulary']}, {name} has {rows} ids: use the model's own tokenizer.json")
    return model


def _pretrained(name: str, folder: str) -> nn.Module:
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise PolicyError(f"network.folder: {path / 'config.json'}: no such file; download the model into that folder first")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        found = need_transformers().AutoConfig.from_pretrained(path, **local).model_type
        if found != MODELS[name][0]:
            raise PolicyError(f"network.folder: {path} holds a {found!r}, backbone {name!r} needs a {MODELS[name][0]!r}")
        return need_transformers().AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **local)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(f"network.folder: {path} cannot be loaded ({error}): it needs config.json and *.safetensors") from error
