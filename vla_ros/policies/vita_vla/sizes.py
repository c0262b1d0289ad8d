"""The keys of `network:` for VITA-VLA and for its teacher; whatever else is there belongs to the eyes or to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.errors import PolicyError
from vla_ros.policies.sizes import check_ranges, read_keys
from vla_ros.policies.vlms.backbone import REQUIRED

SHARED: dict[str, object] = {
    "text_length": REQUIRED,  # ids, to which the instruction is padded
    "window": 4,  # observations that are seen, the newest included
    "gripper_weight": 0.01,  # of the grippers' cross-entropy
    "open_above": 0.5,  # normalised finger width: above, a gripper is open
}
_RANGES = {
    "text_length": (1, 8192), "window": (1, 256), "width": (8, 4096), "layers": (1, 128), "heads": (1, 256), "teacher_width": (8, 4096),
    "vocabulary": (0, 1_000_000), "text_width": (1, 4096), "keypoints": (1, 1024), "latents": (1, 1024), "resampler_layers": (1, 32),
    "image_size": (28, 2048),
}  # fmt: skip


def read_sizes(
    sizes: Mapping[str, object], own: Mapping[str, object], choice: str, table: Mapping[str, str]
) -> tuple[type, dict[str, object]]:
    """Returns the class that `sizes[choice]` names in `table`, and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, or a value out of range.
    """
    part, values = read_keys(sizes, choice, table, {**SHARED, **own})
    check_ranges(values, _RANGES)
    for key, (least, largest) in {"gripper_weight": (0, 1000), "open_above": (-1, 1)}.items():
        if type(values[key]) not in (int, float) or not least <= values[key] <= largest:
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected {least} .. {largest}")
    if values.get("heads") and values["width"] % values["heads"]:
        raise PolicyError(f"network.width = {values['width']} is no multiple of heads = {values['heads']}")
    for key in ("teacher", "folder", "vision_folder", "text_folder"):
        if not isinstance(values.get(key, ""), str):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}, expected a name or a folder")
    return part, values
