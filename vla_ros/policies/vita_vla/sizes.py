"""The keys of `network:` for VITA-VLA and for its teacher; whatever else is there belongs to the eyes or to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.devices import load_device
from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.vlms.backbone import REQUIRED

SHARED: dict[str, object] = {
    "text_length": REQUIRED,  # ids, to which the instruction is padded
    "window": 4,  # observations that are seen, the newest included
    "gripper_weight": 0.01,  # of the grippers' cross-entropy
    "open_above": 0.5,  # normalised finger width: above, a gripper is open
}
# A broken file must end in a message, not in hours of building layers.
_RANGES = {
    "text_length": (1, 8192), "window": (1, 256), "width": (8, 4096), "layers": (1, 128), "heads": (1, 256), "teacher_width": (8, 4096),
    "vocabulary": (0, 1_000_000), "text_width": (1, 4096), "keypoints": (1, 1024), "latents": (1, 1024), "resampler_layers": (1, 32),
    "image_size": (28, 2048),
}  # fmt: skip
_LARGEST_PART = 1_000_000


def read_sizes(
    sizes: Mapping[str, object], own: Mapping[str, object], choice: str, table: Mapping[str, str]
) -> tuple[type, dict[str, object]]:
    """Returns the class that `sizes[choice]` names in `table`, and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, or a value out of range.
    """
    name = sizes.get(choice)
    if name not in list(table):  # no import paths: a checkpoint must not choose which code runs
        raise PolicyError(f"network.{choice} = {name!r:.80}; {did_you_mean(str(name), table)}")
    part = load_device(table, str(name))
    defaults = {**part.SIZES, **SHARED, **own, choice: REQUIRED}
    for key in sizes:
        if key not in defaults:
            raise PolicyError(f"network has unknown key {key!r}; {did_you_mean(str(key), defaults)}")
    values = {**defaults, **sizes}
    if missing := [key for key, value in values.items() if value is REQUIRED]:
        raise PolicyError(f"network lacks {', '.join(missing)}")
    _check(values)
    return part, values


def _check(values: Mapping[str, object]) -> None:
    for key, (least, largest) in _RANGES.items():
        if key in values and (type(values[key]) is not int or not least <= values[key] <= largest):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a whole number {least} .. {largest}")
    for key, (least, largest) in {"gripper_weight": (0, 1000), "open_above": (-1, 1)}.items():
        if type(values[key]) not in (int, float) or not least <= values[key] <= largest:
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected {least} .. {largest}")
    if values.get("heads") and values["width"] % values["heads"]:
        raise PolicyError(f"network.width = {values['width']} is no multiple of heads = {values['heads']}")
    for key in ("teacher", "folder", "vision_folder", "text_folder"):
        if not isinstance(values.get(key, ""), str):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a name or a folder")
    for part in ("text", "vision"):
        found = values.get(part, {})
        if not isinstance(found, dict):
            raise PolicyError(f"network.{part} = {found!r:.80}, expected sizes by name")
        for key, value in found.items():
            largest = 256 if "layers" in str(key) else _LARGEST_PART
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise PolicyError(f"network.{part}.{key} = {value!r:.80}, expected 0 .. {largest}")
