"""The keys of `network:` for Qwen-VLA: the action expert's sizes; whatever else is there belongs to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout
from vla_ros.policies.sizes import check_fits, read_values
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
_RANGES = {"expert_width": (8, 8192), "expert_blocks": (1, 128), "expert_heads": (1, 256)}


def read_sizes(layouts: Mapping[str, Layout], sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the reader's class and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, or one too small for a layout.
    """
    reader, values = read_values(sizes, READERS, _OWN, _RANGES)
    if values["expert_width"] % (2 * values["expert_heads"]):
        raise PolicyError(
            f"network.expert_width = {values['expert_width']}: must be a multiple of 2 * expert_heads = {2 * values['expert_heads']}"
        )
    for layout in layouts.values():
        check_fits(layout, values)
    return reader, values
