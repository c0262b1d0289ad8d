"""Where things lie at the start: a function of the seed alone, the same in every loop that plays the scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_ros.core.errors import ConfigError
from vla_ros.sim.layout import Area, Layout, layout_of
from vla_ros.sim.tasks import BAR, BLOCKS, CONTAINERS, DRAWER, TRAY, Task, tasks

BLOCK_YAW_RAD = 0.6
# The cabinet stands on either side, the blocks lie on the other and in the middle: the hand comes down beside it and reaches its fin.
_CABINET_X_M, _CABINET_Y_M = (0.38, 0.44), (0.19, 0.23)
_BESIDE_CABINET_M: Area = ((0.36, 0.62), (-0.20, 0.02))
# Where what a task does not need waits, out of reach and out of the way.
_ASIDE_M = {
    "red block": (0.84, -0.04),
    "green block": (0.84, 0.03),
    "blue block": (0.84, 0.10),
    "plate": (0.84, -0.50),
    "bowl": (0.84, 0.46),
    BAR: (0.84, 0.24),
    TRAY: (0.84, -0.24),
}


@dataclass(frozen=True)
class Placement:
    """At the start: `position` object -> [2] m in `base_link` (of a drawer: its cabinet), `yaw` of what can be turned -> rad."""

    position: dict[str, np.ndarray]
    yaw: dict[str, float]
    opening_m: float = 0.0  # of the drawer


def draw_placement(seed: int, layout: Layout | None = None, task: Task | None = None) -> Placement:
    """Draws what the task needs so that nothing touches; equal arguments give equal placements.

    Args:
        seed: of the draw. layout: the table; None: the Franka's.
        task: on a table of two arms, decides what lies ready and what waits aside; with a drawer, what is on the table at all.
    """
    layout = layout or layout_of("franka")
    rng = np.random.default_rng(seed)
    if task is not None and task.drawer:
        return _draw_beside_cabinet(rng, layout)
    if not layout.bimanual:
        return _draw_blocks(rng, layout)
    aside = Placement({name: np.array(spot) for name, spot in _ASIDE_M.items()}, dict.fromkeys((*BLOCKS, BAR, TRAY), 0.0))
    if task is None or task.kind in ("place", "stack"):
        ready = _draw_blocks(rng, layout)
    elif task.kind == "pass":
        side = 1.0 if task.goals[0].giver == "left" else -1.0
        x, y = layout.meeting_m[0] + rng.uniform(-0.04, 0.04), side * rng.uniform(0.07, 0.12)
        ready = Placement({BAR: np.array([x, y])}, {BAR: float(rng.uniform(-0.25, 0.25))})
    else:
        spot = np.array(layout.meeting_m[:2]) + rng.uniform(-0.03, 0.03, 2)
        ready = Placement({TRAY: spot}, {TRAY: float(rng.uniform(-0.12, 0.12))})
    return Placement(aside.position | ready.position, aside.yaw | ready.yaw)


def check_task(task: Task, layout: Layout, embodiment: str) -> None:
    """Raises ConfigError: the arms of this table cannot do the task, or it has no drawer."""
    problem = ""
    if task.kind in ("pass", "lift") and not layout.bimanual:
        problem = f"takes two arms, and {embodiment} has one"
    elif task.kind in ("drawer", "clear") and task.kind not in layout.kinds:
        problem = f"takes a drawer, and the table of {embodiment} has none" if task.drawer else f"is no task for the arms of {embodiment}"
    if problem:
        valid = ", ".join(repr(other.text) for kind in layout.kinds for other in tasks(kind))
        raise ConfigError(f"'{task.text}' {problem}; valid here: {valid}")


def _draw_blocks(rng: np.random.Generator, layout: Layout) -> Placement:
    while True:
        position = _try(rng, layout)
        if position is not None:
            return Placement(position, {name: float(rng.uniform(-BLOCK_YAW_RAD, BLOCK_YAW_RAD)) for name in BLOCKS})


def _draw_beside_cabinet(rng: np.random.Generator, layout: Layout) -> Placement:
    side = float(rng.choice((-1.0, 1.0)))
    cabinet = np.array([rng.uniform(*_CABINET_X_M), side * rng.uniform(*_CABINET_Y_M)])
    x, y = _BESIDE_CABINET_M
    beside = replace(layout, block_area_m=(x, tuple(sorted(side * bound for bound in y))))
    position = None
    while position is None:
        position = _try(rng, beside, BLOCKS)
    yaw = {name: float(rng.uniform(-BLOCK_YAW_RAD, BLOCK_YAW_RAD)) for name in BLOCKS}
    return Placement({DRAWER: cabinet, **position}, yaw)


def _try(rng: np.random.Generator, layout: Layout, names: Sequence[str] = CONTAINERS + BLOCKS) -> dict[str, np.ndarray] | None:
    placed: dict[str, np.ndarray] = {}
    for name in names:
        area = layout.block_area_m if name in BLOCKS else layout.container_area_m
        spot = np.array([rng.uniform(*bounds) for bounds in area])
        if any(np.linalg.norm(spot - other) < _room(name, where, layout) for where, other in placed.items()):
            return None
        placed[name] = spot
    return placed


def _room(first: str, second: str, layout: Layout) -> float:
    """Distance between centres that leaves room for the open hand to come down beside a neighbour."""
    return layout.apart_m[(first in BLOCKS) + (second in BLOCKS)]
