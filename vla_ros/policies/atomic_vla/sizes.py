"""The keys of `network:` for AtomicVLA: skills, thinking and the action expert; whatever else is there belongs to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from vla_ros.core.errors import PolicyError, did_you_mean
from vla_ros.policies.atomic_vla.expert import ACTIVATIONS
from vla_ros.policies.atomic_vla.skills import read_skills
from vla_ros.policies.layout import Layout
from vla_ros.policies.sizes import check_fits, read_values
from vla_ros.policies.vlms.backbone import REQUIRED

READERS = {
    "convolutional": "vla_ros.policies.atomic_vla.readers:SmallThinker",
    "paligemma": "vla_ros.policies.atomic_vla.readers:PaliGemmaThinker",
}
# Who chooses the expert: the skill that was thought of, every token for itself, or nobody, as there are none (pi0).
ROUTINGS = ("skill", "token", "none")
_OWN: dict[str, object] = {
    "backbone": REQUIRED,  # a name of READERS
    "text_length": REQUIRED,  # ids, to which the instruction is padded
    "skills": REQUIRED,  # list of {name, sigma, text}, see `skills.Skill`
    "routing": "skill",
    "plan_length": 48,  # ids of the longest plan
    "expert_width": 128,
    "expert_layers": 4,
    "expert_hidden": 256,  # of each feed-forward part
    "expert_heads": 4,
    "expert_key_heads": 1,
    "expert_head_size": 32,
    "expert_activation": "silu",
    "channels": 32,
    "state_width": 32,
    "theta": 10_000.0,  # base of the rotary positions, the backbone's
    "euler_steps": 10,  # from noise to chunk
    "draws": 1,  # pairs of tau and noise for each observation of a training batch; they share what is costly, the reading
    "seed": 0,  # of the noise in `predict`
}
_RANGES = {
    "plan_length": (1, 1024), "expert_width": (8, 8192), "expert_layers": (1, 128), "expert_hidden": (8, 65536), "expert_heads": (1, 256),
    "expert_key_heads": (1, 256), "expert_head_size": (2, 1024), "writer_width": (8, 4096), "writer_layers": (1, 64),
    "writer_heads": (1, 64), "state_width": (1, 1024),
}  # fmt: skip


def read_sizes(layouts: Mapping[str, Layout], sizes: Mapping[str, object]) -> tuple[type, dict[str, object]]:
    """Returns the reader's class and every size with its default, `skills` as a tuple of `Skill`.

    Raises:
        PolicyError: an unknown or missing key, a value out of range, one too small for a layout, or sizes that do not go together.
    """
    reader, values = read_values(sizes, READERS, _OWN, _RANGES)
    for key, valid in (("routing", ROUTINGS), ("expert_activation", ACTIVATIONS)):
        if values[key] not in list(valid):
            raise PolicyError(f"network.{key} = {values[key]!r:.80}; {did_you_mean(str(values[key]), valid)}")
    multiples = [("expert_heads", "expert_key_heads")] + [("writer_width", "writer_heads")] * ("writer_width" in values)
    for key, other in multiples:
        if values[key] % values[other]:
            raise PolicyError(f"network.{key} = {values[key]}: must be a multiple of {other} = {values[other]}")
    for key in ("expert_width", "expert_head_size"):
        if values[key] % 2:
            raise PolicyError(f"network.{key} = {values[key]}: must be even")
    values["skills"] = read_skills(values["skills"])
    for layout in layouts.values():
        check_fits(layout, values)
    return reader, values
