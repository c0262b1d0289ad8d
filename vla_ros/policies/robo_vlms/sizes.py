"""The keys of `network:`: which backbone, which formulation, which head, and their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vla_ros.core.devices import load_device
from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.vlms import BACKBONES
from vla_ros.policies.vlms.backbone import REQUIRED

# Which head reads what: "expert" attends to the whole sequence of one observation, the others to the [LRN]s.
FORMULATIONS: dict[str, tuple[str, ...]] = {
    "one_step_discrete": ("discrete",),
    "one_step_continuous": ("mlp", "flow", "expert"),
    "interleaved": ("mlp", "lstm", "transformer", "flow"),
    "policy_head": ("mlp", "lstm", "transformer", "flow"),
}
MOTION_LOSSES = ("mse", "huber", "l1")
_OWN: dict[str, object] = {
    "backbone": REQUIRED,
    "formulation": "policy_head",
    "head": "lstm",
    "window": 0,  # observations; 0: 1 where one is all that is read, else 8
    "text_length": REQUIRED,  # ids
    "loss": "mse",  # of the motion columns
    "gripper_weight": 0.01,  # of the grippers' binary cross-entropy
    "head_width": 1024,
    "head_layers": 4,
    "head_heads": 8,
    "flow_steps": 10,
    "flow_tau": "beta",
    "seed": 0,  # of the noise that flow heads start from
}
# A broken file must end in a message, not in hours of building layers.
_LARGEST = {
    "text_length": 8192, "head_width": 16384, "head_layers": 128, "head_heads": 256, "flow_steps": 1000,
    "text_width": 4096, "hidden_size": 16384, "blocks": 128, "keypoints": 1024,
}  # fmt: skip
_LARGEST_PART = 1_000_000


def read_sizes(sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the backbone's class and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, or a formulation that cannot have this head or backbone.
    """
    if "backbone" not in sizes:
        raise PolicyError(f"network lacks backbone; {did_you_mean('', BACKBONES)}")
    if sizes["backbone"] not in list(BACKBONES):  # no import paths: a checkpoint must not choose which code runs
        raise PolicyError(f"network.backbone = {sizes['backbone']!r:.80}; {did_you_mean(str(sizes['backbone']), BACKBONES)}")
    backbone = load_device(BACKBONES, str(sizes["backbone"]))
    defaults = {**backbone.SIZES, **_OWN}
    for key in sizes:
        if key not in defaults:
            raise PolicyError(f"network has unknown key {key!r}; {did_you_mean(key, defaults)}")
    missing = [key for key, value in defaults.items() if value is REQUIRED and key not in sizes]
    if missing:
        raise PolicyError(f"network lacks {', '.join(missing)}")
    values = {**defaults, **sizes}
    _check_choice(values, "formulation", FORMULATIONS)
    _check_choice(values, "head", FORMULATIONS[str(values["formulation"])], f" with formulation {values['formulation']}")
    _check_choice(values, "loss", MOTION_LOSSES)
    values["window"] = _window(values)
    _check_counts(values)
    if values["head_width"] % values["head_heads"]:
        raise PolicyError(f"network.head_width = {values['head_width']} is no multiple of head_heads = {values['head_heads']}")
    if values["formulation"] == "interleaved" and not backbone.decoder_only:
        raise PolicyError(
            f"network.formulation interleaved puts observations and [LRN]s into one sequence; backbone {values['backbone']} is not "
            f"decoder-only: use policy_head, or one of {', '.join(_decoder_only())}"
        )
    return backbone, values


def _check_choice(values: Mapping[str, object], key: str, valid: Iterable[str], where: str = "") -> None:
    if values[key] not in list(valid):
        raise PolicyError(f"network.{key} = {values[key]!r}{where}; {did_you_mean(str(values[key]), valid)}")


def _check_counts(values: Mapping[str, object]) -> None:
    for key, largest in _LARGEST.items():
        if key in values and (type(values[key]) is not int or not 1 <= values[key] <= largest):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a whole number 1 .. {largest}")
    if type(values["vocabulary"]) is not int or not 0 <= values["vocabulary"] <= _LARGEST_PART:
        raise PolicyError(f"network.vocabulary = {values['vocabulary']!r:.80}, expected 0 .. {_LARGEST_PART}")
    for part in ("text", "vision"):
        sizes = values.get(part, {})
        if not isinstance(sizes, dict):
            raise PolicyError(f"network.{part} = {sizes!r:.80}, expected sizes by name")
        for key, value in sizes.items():
            largest = 256 if "layers" in key or key == "depth" else _LARGEST_PART
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise PolicyError(f"network.{part}.{key} = {value!r:.80}, expected 0 .. {largest}")


def _window(values: Mapping[str, object]) -> int:
    window, history = values["window"], values["formulation"] in ("interleaved", "policy_head")
    if type(window) is not int or not 0 <= window <= 256 or (window > 1 and not history):
        limit = "0 .. 256" if history else f"1: {values['formulation']} reads one observation"
        raise PolicyError(f"network.window = {window!r}, expected {limit}")
    return window or (8 if history else 1)


def _decoder_only() -> list[str]:
    return [name for name in BACKBONES if name not in ("convolutional", "idefics")]
