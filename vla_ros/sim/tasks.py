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
BAR, TRAY = "yellow bar", "tray"  # on tables of two arms only
HANDS = ("left hand", "right hand")
AIR = "air"
_PLACE = re.compile(rf"pick up the ({'|'.join(COLOURS)}) block and put it (on the plate|in the bowl)")
_PASS = re.compile(r"pass the yellow bar from the (left|right) hand to the (left|right) hand")
_LIFT = "lift the tray with both hands"
_STACK = re.compile(rf"stack the ({'|'.join(COLOURS)}) block on the ({'|'.join(COLOURS)}) block")


@dataclass(frozen=True)
class Task:
    """Move `block` to `goal`; `text` is the canonical instruction.

    A block goes to a plate, bowl or another block, the bar to a hand of `HANDS`, the tray into the air.
    """

    block: str
    goal: str

    @property
    def kind(self) -> str:
        """ "place", "stack", "pass" or "lift"."""
        return {BAR: "pass", TRAY: "lift"}.get(self.block, "stack" if self.goal in BLOCKS else "place")

    @property
    def giver(self) -> str:
        """The arm that a bar is passed from."""
        return "right" if self.goal == HANDS[0] else "left"

    @property
    def taker(self) -> str:
        """The arm that a bar is passed to."""
        return self.goal.split()[0]

    @property
    def text(self) -> str:
        if self.kind == "pass":
            return f"pass the {self.block} from the {self.giver} hand to the {self.goal}"
        if self.kind == "lift":
            return _LIFT
        if self.kind == "stack":
            return f"stack the {self.block} on the {self.goal}"
        return f"pick up the {self.block} and put it {'on' if self.goal == 'plate' else 'in'} the {self.goal}"


def tasks(stack: bool = False) -> list[Task]:
    """The six pick-and-place tasks, or the six stacking tasks, in a fixed order."""
    return [Task(*pair) for pair in (permutations(BLOCKS, 2) if stack else product(BLOCKS, CONTAINERS))]


def bimanual_tasks() -> list[Task]:
    """What takes two arms."""
    return [Task(BAR, HANDS[1]), Task(TRAY, AIR), Task(BAR, HANDS[0])]


def task_of_seed(seed: int, bimanual: bool = False) -> Task:
    """The task of a seed, all in turn, so that every run of seeds is balanced.

    The six pick-and-place tasks; with `bimanual` every other seed is one of the tasks for two arms.
    """
    if not bimanual:
        return tasks()[seed % len(tasks())]
    half = seed // 2
    return tasks()[half % len(tasks())] if seed % 2 else bimanual_tasks()[half % len(bimanual_tasks())]


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
    if (match := _PASS.fullmatch(sentence)) and match[1] != match[2]:
        return Task(BAR, f"{match[2]} hand")
    if sentence == _LIFT:
        return Task(TRAY, AIR)
    valid = ", ".join(repr(task.text) for task in tasks() + tasks(stack=True) + bimanual_tasks())
    raise ConfigError(f"task {text!r} is not one that the table can judge; valid: {valid}")
