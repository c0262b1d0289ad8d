"""Reads the keys of `network:` for systems of a reader (what turns an observation into states) and an action expert."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vla_ros.core.devices import load_device
from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.layout import Layout
from vla_ros.policies.vlms.backbone import REQUIRED

# Of every backbone, and of what all systems have.
_RANGES = {
    "text_length": (1, 8192), "vocabulary": (0, 1_000_000), "text_width": (1, 4096), "hidden_size": (1, 16384), "blocks": (1, 128),
    "keypoints": (1, 1024), "image_size": (0, 2048), "channels": (1, 1024), "state_width": (0, 1024), "euler_steps": (1, 1000),
    "draws": (1, 256), "seed": (0, 2**31),
}  # fmt: skip
_LARGEST_PART = 1_000_000


def read_keys(
    sizes: Mapping[str, object], choice: str, table: Mapping[str, str], own: Mapping[str, object]
) -> tuple[type, dict[str, object]]:
    """Returns the class that `sizes[choice]` names in `table`, and every size with its default.

    Args:
        sizes: as the checkpoint or the policy file has them.
        choice: key of the class; its `SIZES` are valid keys too.
        table: where the classes are.
        own: the system's keys and their defaults.

    Raises:
        PolicyError: an unknown or missing key.
    """
    name = sizes.get(choice)
    if name not in list(table):  # no import paths: a checkpoint must not choose which code runs
        raise PolicyError(f"network.{choice} = {name!r:.80}; {did_you_mean(str(name), table)}")
    chosen = load_device(table, str(name))
    defaults = {**chosen.SIZES, **own, choice: REQUIRED}
    for key in sizes:
        if key not in defaults:
            raise PolicyError(f"network has unknown key {key!r}; {did_you_mean(str(key), defaults)}")
    values = {**defaults, **sizes}
    if missing := [key for key, value in values.items() if value is REQUIRED]:
        raise PolicyError(f"network lacks {', '.join(missing)}")
    return chosen, values


def check_ranges(values: Mapping[str, object], ranges: Mapping[str, tuple[int, int]]) -> None:
    """Raises PolicyError for a number out of its range: a broken file must end in a message, not in hours of building layers."""
    for key, (least, largest) in ranges.items():
        if key in values and (type(values[key]) is not int or not least <= values[key] <= largest):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a whole number {least} .. {largest}")
    for part in ("text", "vision"):
        sizes = values.get(part, {})
        if not isinstance(sizes, dict):
            raise PolicyError(f"network.{part} = {sizes!r:.80}, expected sizes by name")
        for key, value in sizes.items():
            largest = 256 if "layers" in str(key) or key == "depth" else _LARGEST_PART
            if isinstance(value, int | float) and not 0 <= value <= largest:
                raise PolicyError(f"network.{part}.{key} = {value!r:.80}, expected 0 .. {largest}")


def read_values(
    sizes: Mapping[str, object], readers: Mapping[str, str], own: Mapping[str, object], ranges: Mapping[str, tuple[int, int]]
) -> tuple[type, dict[str, object]]:
    """Like `read_keys`, of a system with a `backbone`, checked.

    Args:
        ranges: least and largest of the system's own whole numbers.
    """
    reader, values = read_keys(sizes, "backbone", readers, own)
    check_ranges(values, {**_RANGES, **ranges})
    theta = values.get("theta", 10_000.0)
    if type(theta) not in (int, float) or not math.isfinite(theta) or theta <= 1:
        raise PolicyError(f"network.theta = {theta!r:.80}, expected a number above 1")
    return reader, values


def check_fits(layout: Layout, values: Mapping[str, object]) -> None:
    """Raises PolicyError where `channels`, or a `state_width` above 0, is too small for a robot."""
    for key, needed in (("channels", len(layout.channels)), ("state_width", layout.feature_count if values["state_width"] else 0)):
        if needed > values[key]:
            raise PolicyError(f"network.{key} = {values[key]}: {layout.embodiment} has {needed}; raise it")
