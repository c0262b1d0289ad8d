"""The sentences that a simulated table understands, in their one canonical form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations, product

from vla_ros.core.errors import ConfigError

COLOURS = ("red", "green", "blue")
CONTAINERS = ("plate", "bowl")
BLOCKS = tuple(f"{colour} block" for colour in COLOURS)
OBJECTS = BLOCKS + CONTAINERS
_PLACE = re.compile(rf"pick up the ({'|'.join(COLOURS)}) block and put it (on the plate|in the bowl)")
_STACK = re.compile(rf"stack the ({'|'.join(COLOURS)}) block on the ({'|'.join(COLOURS)}) block")


@dataclass(frozen=True)
class Task:
    """Move `block` to `goal` (both of `OBJECTS`); `text` is the canonical instruction."""

    block: str
    goal: str

    @property
    def text(self) -> str:
        if self.goal in BLOCKS:
            return f"stack the {self.block} on the {self.goal}"
        return f"pick up the {self.block} and put it {'on' if self.goal == 'plate' else 'in'} the {self.goal}"


def tasks(stack: bool = False) -> list[Task]:
    """The six pick-and-place tasks, or the six stacking tasks, in a fixed order."""
    return [Task(*pair) for pair in (permutations(BLOCKS, 2) if stack else product(BLOCKS, CONTAINERS))]


def task_of_seed(seed: int) -> Task:
    """The pick-and-place task of a seed: all six in turn, so that every run of seeds is balanced."""
    return tasks()[seed % len(tasks())]


def parse_task(text: str) -> Task:
    """Reads a canonical instruction, in any case and spacing.

    Raises:
        ConfigError: another sentence; the judge must know what was asked for.
    """
    sentence = " ".join(text.lower().split()).rstrip(".")
    if match := _PLACE.fullmatch(sentence):
        return Task(f"{match[1]} block", match[2].split()[-1])
    if (match := _STACK.fullmatch(sentence)) and match[1] != match[2]:
        return Task(f"{match[1]} block", f"{match[2]} block")
    valid = ", ".join(repr(task.text) for task in tasks() + tasks(stack=True))
    raise ConfigError(f"task {text!r} is not one that the table can judge; valid: {valid}")
