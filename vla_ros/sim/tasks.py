"""The sentences that a simulated table understands, in their one canonical form, and the goals that they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import permutations, product

from vla_ros.core.errors import ConfigError, did_you_mean

COLOURS = ("red", "green", "blue")
CONTAINERS = ("plate", "bowl")
BLOCKS = tuple(f"{colour} block" for colour in COLOURS)
OBJECTS = BLOCKS + CONTAINERS
BAR, TRAY = "yellow bar", "tray"  # on tables of two arms only
DRAWER = "drawer"
HANDS = ("left hand", "right hand")
AIR, OPEN, CLOSED = "air", "open", "closed"
_PLACE = re.compile(rf"pick up the ({'|'.join(COLOURS)}) block and put it (on the plate|in the bowl)")
_PASS = re.compile(r"pass the yellow bar from the (left|right) hand to the (left|right) hand")
_LIFT = "lift the tray with both hands"
_STACK = re.compile(rf"stack the ({'|'.join(COLOURS)}) block on the ({'|'.join(COLOURS)}) block")
_DRAWER = re.compile(rf"open the drawer, put the ({'|'.join(COLOURS)}) block in it and close it")
_CLEAR = "clear the table into the bowl"


@dataclass(frozen=True)
class Goal:
    """Bring `block` to `goal`: one step of a task.

    A block goes to a plate, bowl, drawer or another block, the bar to a hand of `HANDS`, the tray into the air, the drawer to `OPEN` or
    `CLOSED`. `slot` 0 .. 2 is set where several blocks go into one bowl: each has its place there, and they may lie on each other.
    """

    block: str
    goal: str
    slot: int | None = None

    @property
    def kind(self) -> str:
        """ "place", "stack", "pass", "lift", "open" or "close"."""
        if self.block == DRAWER:
            return "open" if self.goal == OPEN else "close"
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
    def skills(self) -> tuple[str, ...]:
        """The atomic skills that it takes, in order, each with what it is about; the skill is the first word."""
        if self.block == DRAWER:
            return (f"{self.kind} {DRAWER}",)
        last = {"pass": f"pass to {self.goal}", "lift": f"lift {self.block}"}.get(self.kind)
        return f"pick {self.block}", last or f"place {'in' if self.goal in ('bowl', DRAWER) else 'on'} {self.goal}"

    @property
    def text(self) -> str:
        """The sentence of a task that is this goal alone."""
        if self.kind == "pass":
            return f"pass the {self.block} from the {self.giver} hand to the {self.goal}"
        if self.kind == "lift":
            return _LIFT
        if self.kind == "stack":
            return f"stack the {self.block} on the {self.goal}"
        return f"pick up the {self.block} and put it {'on' if self.goal == 'plate' else 'in'} the {self.goal}"


@dataclass(frozen=True)
class Task:
    """What one instruction asks for: goals, to be met one after the other. Most tasks have one."""

    goals: tuple[Goal, ...]

    @property
    def kind(self) -> str:
        """That of its goal where it has one, else "drawer" or "clear"."""
        if len(self.goals) == 1:
            return self.goals[0].kind
        return "drawer" if self.drawer else "clear"

    @property
    def drawer(self) -> bool:
        """Whether it takes a drawer."""
        return any(DRAWER in (goal.block, goal.goal) for goal in self.goals)

    @property
    def blocks(self) -> tuple[str, ...]:
        """What is to be moved."""
        return tuple(goal.block for goal in self.goals if goal.block != DRAWER)

    @property
    def named(self) -> set[str]:
        """What may move: all that it names."""
        return {name for goal in self.goals for name in (goal.block, goal.goal)}

    @property
    def chain(self) -> tuple[str, ...]:
        """The atomic skills of all goals, in order, e.g. ("open drawer", "pick red block", "place in drawer", "close drawer")."""
        return tuple(skill for goal in self.goals for skill in goal.skills)

    def goal_of(self, skill: int) -> Goal:
        """The goal that a skill of the chain, by its index, works for."""
        return [goal for goal in self.goals for _ in goal.skills][skill]

    @property
    def text(self) -> str:
        """The canonical instruction."""
        if self.kind == "drawer":
            return f"open the {DRAWER}, put the {self.blocks[0]} in it and close it"
        return _CLEAR if self.kind == "clear" else self.goals[0].text


def _drawer_task(block: str) -> Task:
    return Task((Goal(DRAWER, OPEN), Goal(block, DRAWER), Goal(DRAWER, CLOSED)))


CLEAR = Task(tuple(Goal(block, "bowl", slot) for slot, block in enumerate(BLOCKS)))
_TASKS: dict[str, list[Task]] = {
    "place": [Task((Goal(*pair),)) for pair in product(BLOCKS, CONTAINERS)],
    "stack": [Task((Goal(*pair),)) for pair in permutations(BLOCKS, 2)],
    "bimanual": [Task((goal,)) for goal in (Goal(BAR, HANDS[1]), Goal(TRAY, AIR), Goal(BAR, HANDS[0]))],
    "drawer": [_drawer_task(block) for block in BLOCKS],
    "clear": [CLEAR],
}
KINDS = tuple(_TASKS)


def tasks(kind: str = "place") -> list[Task]:
    """The tasks of a kind, in a fixed order. Raises ConfigError: no such kind."""
    if kind not in _TASKS:
        raise ConfigError(f"tasks of kind '{kind}'; {did_you_mean(kind, KINDS)}")
    return _TASKS[kind]


def task_of_seed(seed: int, kinds: tuple[str, ...] = ("place",)) -> Task:
    """The task of a seed: the kinds in turn, and of each kind its tasks in turn, so that every run of seeds is balanced."""
    own = tasks(kinds[seed % len(kinds)])
    return own[seed // len(kinds) % len(own)]


def parse_task(text: str) -> Task:
    """Reads a canonical instruction, in any case and spacing.

    Raises:
        ConfigError: another sentence; the judge must know what was asked for.
    """
    sentence = " ".join(text.lower().split()).rstrip(".")
    if match := _PLACE.fullmatch(sentence):
        return Task((Goal(f"{match[1]} block", match[2].split()[-1]),))
    if (match := _STACK.fullmatch(sentence)) and match[1] != match[2]:
        return Task((Goal(f"{match[1]} block", f"{match[2]} block"),))
    if (match := _PASS.fullmatch(sentence)) and match[1] != match[2]:
        return Task((Goal(BAR, f"{match[2]} hand"),))
    if match := _DRAWER.fullmatch(sentence):
        return _drawer_task(f"{match[1]} block")
    if sentence in (_LIFT, _CLEAR):
        return CLEAR if sentence == _CLEAR else Task((Goal(TRAY, AIR),))
    valid = ", ".join(repr(task.text) for kind in KINDS for task in tasks(kind))
    raise ConfigError(f"task {text!r} is not one that the table can judge; valid: {valid}")
