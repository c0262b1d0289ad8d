"""The keys of `network:` for Qwen-VLA: the action expert's sizes; whatever else is there belongs to the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vla_ros.core.devices import load_device
from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.layout import POSE_FEATURES, Layout
from vla_ros.policies.vlms.backbone import REQUIRED

READERS = {
    "convolutional": "vla_ros.policies.qwen_vla.reader:SmallReader",
    "qwen3_5": "vla_ros.policies.qwen_vla.tagged_qwen:TaggedQwen35",
}
_OWN: dict[str, object] = {
    "backbone": REQUIRED,  # a name of READERS
    "text_length": REQUIRED,  # ids, to which the prompt is padded
    "expert_width": 128,
    "expert_blocks": 3,
    "expert_heads": 4,
    "channels": 16,  # K
    "theta": 10_000.0,  # base of the rotary positions; the paper's backbone has 1e7
    "state_width": 0,  # features of proprioception that are read; 0, the paper's choice: none
    "euler_steps": 4,  # from noise to chunk
    "draws": 1,  # pairs of tau and noise for each observation of a training batch; they share what is costly, the encoding
    "seed": 0,  # of the noise in `predict`
}
# A broken file must end in a message, not in hours of building layers.
_RANGES = {
    "text_length": (1, 8192), "expert_width": (8, 8192), "expert_blocks": (1, 128), "expert_heads": (1, 256), "channels": (1, 1024),
    "state_width": (0, 1024), "euler_steps": (1, 1000), "draws": (1, 256), "seed": (0, 2**31),
    "vocabulary": (0, 1_000_000), "text_width": (1, 4096), "hidden_size": (1, 16384), "blocks": (1, 128), "keypoints": (1, 1024),
    "image_size": (0, 2048),
}  # fmt: skip
_LARGEST_PART = 1_000_000


def read_sizes(layouts: Mapping[str, Layout], sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the reader's class and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, or one too small for a layout.
    """
    name = sizes.get("backbone")
    if name not in list(READERS):  # no import paths: a checkpoint must not choose which code runs
        raise PolicyError(f"network.backbone = {name!r:.80}; {did_you_mean(str(name), READERS)}")
    reader = load_device(READERS, str(name))
    defaults = {**reader.SIZES, **_OWN}
    for key in sizes:
        if key not in defaults:
            raise PolicyError(f"network has unknown key {key!r}; {did_you_mean(str(key), defaults)}")
    values = {**defaults, **sizes}
    if missing := [key for key, value in values.items() if value is REQUIRED]:
        raise PolicyError(f"network lacks {', '.join(missing)}")
    _check_ranges(values)
    if values["expert_width"] % (2 * values["expert_heads"]):
        raise PolicyError(
            f"network.expert_width = {values['expert_width']}: must be a multiple of 2 * expert_heads = {2 * values['expert_heads']}"
        )
    for layout in layouts.values():
        _check_fits(layout, values)
    return reader, values


def _check_ranges(values: Mapping[str, object]) -> None:
    for key, (least, largest) in _RANGES.items():
        if key in values and (type(values[key]) is not int or not least <= values[key] <= largest):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a whole number {least} .. {largest}")
    theta = values["theta"]
    if type(theta) not in (int, float) or not math.isfinite(theta) or theta <= 1:
        raise PolicyError(f"network.theta = {theta!r:.80}, expected a number above 1")
    for part in ("text", "vision"):
        sizes = values.get(part, {})
        if not isinstance(sizes, dict):
            raise PolicyError(f"network.{part} = {sizes!r:.80}, expected sizes by name")
        for key, value in sizes.items():
            largest = 256 if "layers" in str(key) or key == "depth" else _LARGEST_PART
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise PolicyError(f"network.{part}.{key} = {value!r:.80}, expected 0 .. {largest}")


def _check_fits(layout: Layout, values: Mapping[str, object]) -> None:
    features = sum((POSE_FEATURES if arm.pose else arm.motion) + 1 for arm in layout.arms)
    for key, needed in (("channels", len(layout.channels)), ("state_width", features if values["state_width"] else 0)):
        if needed > values[key]:
            raise PolicyError(f"network.{key} = {values[key]}: {layout.embodiment} has {needed}; raise it")
