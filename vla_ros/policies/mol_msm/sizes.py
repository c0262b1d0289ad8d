"""The keys of `network:` for MoL-MSM VLA; whatever is not here belongs to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout
from vla_ros.policies.sizes import read_values
from vla_ros.policies.vlms.backbone import REQUIRED

READERS = {
    "layered": "vla_ros.policies.mol_msm.layered:LayeredReader",
    "prismatic": "vla_ros.policies.vlms.prismatic:Prismatic",
}
_OWN: dict[str, object] = {
    "backbone": REQUIRED,  # a name of READERS
    "text_length": REQUIRED,  # ids
    "queries": 64,  # learnable tokens behind the words
    "head_heads": 4,  # of the action head's attention; its width is the backbone's
    "mixture": True,  # of layers; False, for comparison: every block of the head reads the last layer
    "memory": 4096,  # entries; 0: there is none
    "retrieved": 4,  # entries for a chunk
    "seed": 0,  # of the noise in `predict`
}
_RANGES = {
    "queries": (1, 4096), "head_heads": (1, 256), "memory": (0, 100_000), "retrieved": (1, 256), "text_width": (4, 4096),
    "hidden_size": (4, 16384), "layers": (1, 128), "heads": (1, 256),
}  # fmt: skip


def read_sizes(layouts: Mapping[str, Layout], sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the reader's class and every size with its default.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, or several robots.
    """
    if len(layouts) != 1:
        raise PolicyError(f"MoL-MSM remembers the chunks of one robot, found {', '.join(layouts)}: train a checkpoint for each")
    reader, values = read_values(sizes, READERS, _OWN, _RANGES)
    if type(values["mixture"]) is not bool:
        raise PolicyError(f"network.mixture = {values['mixture']!r:.80}, expected true or false")
    if 0 < values["memory"] < values["retrieved"]:
        raise PolicyError(f"network.memory = {values['memory']} holds fewer than retrieved = {values['retrieved']}; 0 means no memory")
    return reader, values
