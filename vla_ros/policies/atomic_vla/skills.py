"""The registry of atomic skills: names, noise levels and texts, as `network.skills` of a checkpoint lists them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

from torch import nn

from vla_ros.core.errors import PolicyError

LEAST_SIGMA, LARGEST_SIGMA = 10.0, 100.0
MOST_SKILLS = 256
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Skill:
    """One atomic skill.

    Args:
        name: one word, as plans write it.
        sigma: its noise level in 10 .. 100, from which its embedding is made; no other skill has it.
        text: what it does, for people.
    """

    name: str
    sigma: float
    text: str = ""

    def __post_init__(self) -> None:
        # The names become names of modules, some of which a torch module needs itself.
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or hasattr(nn.ModuleDict, self.name):
            raise PolicyError(f"skill {self.name!r:.80}: expected one word in small letters that is no attribute of a torch module")
        if type(self.sigma) not in (int, float) or not LEAST_SIGMA <= self.sigma <= LARGEST_SIGMA:
            raise PolicyError(f"skill {self.name}: sigma {self.sigma!r:.80}, expected {LEAST_SIGMA:g} .. {LARGEST_SIGMA:g}")
        if not isinstance(self.text, str):
            raise PolicyError(f"skill {self.name}: text {self.text!r:.80}, expected words")


def read_skills(values: object) -> tuple[Skill, ...]:
    """Reads `network.skills`. Raises PolicyError: no list of {name, sigma, text}, or two skills share a name or a level."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= MOST_SKILLS:
        raise PolicyError(f"network.skills = {values!r:.80}, expected a list of 1 .. {MOST_SKILLS} skills with name and sigma")
    skills: list[Skill] = []
    for value in values:
        if not isinstance(value, Mapping) or not {"name", "sigma"} <= set(value) <= {"name", "sigma", "text"}:
            raise PolicyError(f"network.skills has {value!r:.80}, expected name, sigma and perhaps text")
        skills.append(checked(Skill(**value), skills))
    return tuple(skills)


def checked(skill: Skill, others: Iterable[Skill]) -> Skill:
    """Returns `skill`. Raises PolicyError when one of `others` has its name or level."""
    for other in others:
        if other.name == skill.name:
            raise PolicyError(f"skill {skill.name!r} is there already: choose another name")
        if abs(math.log(other.sigma / skill.sigma)) < 1e-6:
            raise PolicyError(f"skill {skill.name!r}: sigma {skill.sigma:g} belongs to {other.name!r}; {next_sigma([*others]):.4g} is free")
    return skill


def next_sigma(skills: Iterable[Skill]) -> float:
    """Returns the level for one more skill: the middle (of the logarithms) of the widest gap between those of `skills`."""
    taken = sorted(math.log(skill.sigma) for skill in skills)
    if not taken:
        return LEAST_SIGMA
    ends = math.log(LEAST_SIGMA), math.log(LARGEST_SIGMA)
    # A level at an end of the range is as good as one between two others, if it is as far from its neighbour.
    candidates = [(taken[0] - ends[0], ends[0]), (ends[1] - taken[-1], ends[1])]
    candidates += [((after - before) / 2, (after + before) / 2) for before, after in pairwise(taken)]
    return min(max(math.exp(max(candidates)[1]), LEAST_SIGMA), LARGEST_SIGMA)


def with_skill(sizes: Mapping[str, object], skill: Skill) -> dict[str, object]:
    """Returns `network:` of a checkpoint with one more skill at the end."""
    known = read_skills(sizes.get("skills"))
    return {**sizes, "skills": [asdict(item) for item in (*known, checked(skill, known))]}
