"""The teacher that stage 1 learns from: loaded from its own checkpoint, checked, never changed and never shipped with the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_ros.core.errors import PolicyError
from vla_ros.policies import find_checkpoint
from vla_ros.policies.checkpoint import CONFIG, TOKENIZER, CheckpointConfig, read_config, read_tokenizer
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Inputs
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.vita_vla.seer import Seer
from vla_ros.policies.weights import load_network

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIX = "train a teacher on the student's data and sizes, or choose another"


@dataclass(frozen=True)
class Teacher:
    """`image`: {"width", "height"} px of the pictures that it was trained with; `origin` names it in messages."""

    network: Seer
    image: Mapping[str, int]
    origin: str

    @torch.no_grad()
    def states(self, inputs: Inputs) -> Tensor:
        """Returns the states [B, W, T, d] of its action tokens. Raises PolicyError: the pictures have another size than its own."""
        height, width = inputs.images.shape[-2:]
        if (width, height) != (self.image["width"], self.image["height"]):
            raise PolicyError(f"{self.origin}: made for images {dict(self.image)} px, the student's are {width} x {height} px: {_FIX}")
        return self.network.to(inputs.images.device).action_states(inputs).float()


def load_teacher(
    name: str, layouts: Mapping[str, Layout], horizon: int, sizes: Mapping[str, object], tokenizer: Tokenizer | None = None
) -> Teacher:
    """Loads the checkpoint `name` (of config/checkpoints, or a folder) as the teacher of a student.

    Args:
        name: see above.
        layouts, horizon, sizes: the student's.
        tokenizer: the student's, where it is at hand: both read the same ids.

    Raises:
        PolicyError: there is no teacher, or it is of another system, embodiment, normalisation, chunk, width, window or vocabulary.
    """
    if not name:
        raise PolicyError("network.teacher is empty: name the checkpoint of a trained teacher (system: seer), as in config/training")
    folder = find_checkpoint(name)
    config, origin = read_config(folder), str(folder / CONFIG)
    for problem in (*_wrong_robot(config, layouts), *_wrong_sizes(config, horizon, sizes)):
        raise PolicyError(f"{origin}: {problem}: {_FIX}")
    if tokenizer is not None and read_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise PolicyError(f"{folder / TOKENIZER}: other words than the student's: {_FIX}")
    network = load_network(folder, lambda: make_network(config, origin))
    return Teacher(network.eval().requires_grad_(False), config.image, origin)


def _wrong_robot(config: CheckpointConfig, layouts: Mapping[str, Layout]) -> list[str]:
    if config.system != "seer":
        return [f"system {config.system!r}, a teacher is a 'seer'"]
    if list(config.layouts) != list(layouts):
        return [f"a teacher for {', '.join(config.layouts)}, the student drives {', '.join(layouts)}"]
    problems = []
    for name, layout in layouts.items():
        for key in ("cameras", "state", "channels"):
            found, wanted = getattr(config.layouts[name], key), getattr(layout, key)
            if found != wanted:
                problems.append(f"layouts.{name}.{key} {list(found)}, the student has {list(wanted)}")
        if config.layouts[name].normalization != layout.normalization:
            problems.append(f"layouts.{name}.normalization is not that of the student's data")
    return problems


def _wrong_sizes(config: CheckpointConfig, horizon: int, sizes: Mapping[str, object]) -> list[str]:
    theirs = {"horizon": config.horizon, **config.network}
    ours = {"horizon": horizon, "width": sizes["teacher_width"], **{key: sizes[key] for key in ("window", "text_length", "vocabulary")}}
    names = {"horizon": "horizon", "width": "network.width (the student's teacher_width)"}
    return [
        f"{names.get(key, f'network.{key}')} {theirs.get(key)!r}, the student needs {wanted!r}"
        for key, wanted in ours.items()
        if theirs.get(key) != wanted
    ]
