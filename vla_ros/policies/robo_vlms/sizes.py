"""The keys of `network:`: which backbone, which formulation, which head, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.devices import load_device
from vla_ros.core.errors import ConfigError, PolicyError, did_you_mean
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
_COUNTS = ("text_length", "head_width", "head_layers", "head_heads", "flow_steps")


def read_sizes(sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the backbone's class and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, or a formulation that cannot have this head or backbone.
    """
    if "backbone" not in sizes:
        raise PolicyError(f"network lacks backbone; {did_you_mean('', BACKBONES)}")
    try:
        backbone = load_device(BACKBONES, str(sizes["backbone"]))
    except ConfigError as error:
        raise PolicyError(f"network.backbone: {error}") from error
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
    for key in _COUNTS:
        if type(values[key]) is not int or values[key] < 1:
            raise PolicyError(f"network.{key} = {values[key]!r}, expected a whole number >= 1")
    if values["head_width"] % values["head_heads"]:
        raise PolicyError(f"network.head_width = {values['head_width']} is no multiple of head_heads = {values['head_heads']}")
    if values["formulation"] == "interleaved" and not backbone.decoder_only:
        raise PolicyError(
            f"network.formulation interleaved puts observations and [LRN]s into one sequence; backbone {values['backbone']} is not "
            f"decoder-only: use policy_head, or one of {', '.join(_decoder_only())}"
        )
    return backbone, values


def _check_choice(values: Mapping[str, object], key: str, valid: object, where: str = "") -> None:
    if values[key] not in valid:
        raise PolicyError(f"network.{key} = {values[key]!r}{where}; {did_you_mean(str(values[key]), valid)}")


def _window(values: Mapping[str, object]) -> int:
    window, history = values["window"], values["formulation"] in ("interleaved", "policy_head")
    if type(window) is not int or not 0 <= window <= 256 or (window > 1 and not history):
        limit = "0 .. 256" if history else f"1: {values['formulation']} reads one observation"
        raise PolicyError(f"network.window = {window!r}, expected {limit}")
    return window or (8 if history else 1)


def _decoder_only() -> list[str]:
    return [name for name in BACKBONES if name not in ("convolutional", "idefics")]
