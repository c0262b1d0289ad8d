"""Success and mistakes, from where things lie; never from what was commanded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.sim.tasks import BLOCKS, Task
from vla_ros.sim.world import BAR_M, BLOCK_M, BOWL_RADIUS_M, HANDLE_M, PLATE_RADIUS_M, World, resting_height_m

HOLD_S = 0.5
MOVED_M = 0.03
AWAY_M = 0.06
LIFTED_M, TILT_RAD = 0.06, 0.2
_OPEN_M = BLOCK_M + 0.012


@dataclass(frozen=True)
class Outcome:
    """`success` now; `failed`: the block fell off the table; `wrong_object`: a block that the task does not name was moved, ever."""

    success: bool
    failed: bool
    wrong_object: bool
    detail: str


class Judge:
    """Watches one task from its start. Times are of the simulation, in s."""

    def __init__(self, task: Task, world: World) -> None:
        self.task = task
        self._start = {name: position.copy() for name, position in world.position.items()}
        self._since_s: float | None = None
        self._wrong = ""
        self._outcome = Outcome(False, False, False, "not begun")

    def excuse(self, name: str, dx_m: float, dy_m: float) -> None:
        """Tells of an object that was moved from outside."""
        self._start[name] = self._start[name] + (dx_m, dy_m, 0.0)

    def update(self, world: World, time_s: float) -> Outcome:
        """Judges this instant; a goal counts when it has been met for `HOLD_S`."""
        for name in BLOCKS:
            moved = world.position[name] - self._start[name]
            if name not in (self.task.block, self.task.goal) and not self._wrong and (np.hypot(*moved[:2]) > MOVED_M or moved[2] > MOVED_M):
                self._wrong = name
        missing = self._missing(world)
        if missing:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = time_s
        success = self._since_s is not None and time_s - self._since_s >= HOLD_S - 1e-6
        failed = bool(world.position[self.task.block][2] < -0.05)
        detail = missing or (f"{self.task.block} is {_where(self.task)}" if success else "waiting that it stays so")
        self._outcome = Outcome(success, failed, bool(self._wrong), detail + (f"; moved the {self._wrong}" if self._wrong else ""))
        return self._outcome

    @property
    def outcome(self) -> Outcome:
        """The newest judgement."""
        return self._outcome

    def _missing(self, world: World) -> str:
        """Returns what is not yet as it should be, or ""."""
        block = world.position[self.task.block]
        if block[2] < -0.05:
            return f"{self.task.block} fell off the table"
        if self.task.kind == "pass":
            return _not_passed(world, self.task)
        if self.task.kind == "lift":
            return _not_lifted(world, self.task)
        goal = world.position[self.task.goal]
        away = float(np.hypot(*(block - goal)[:2]))
        room = {"plate": PLATE_RADIUS_M - 0.01, "bowl": BOWL_RADIUS_M}.get(self.task.goal, BLOCK_M * 0.7)
        if away > room:
            return f"{self.task.block} {away:.2f} m from the {self.task.goal}"
        high = float(block[2]) - resting_height_m(self.task.goal, world.position)
        # In the bowl it may lean against the wall.
        if not -0.006 < high < (0.022 if self.task.goal == "bowl" else 0.008):
            return f"{self.task.block} {high:+.3f} m off its height {_where(self.task)}"
        for hand in world.hands:
            apart = float(np.linalg.norm(block - hand.position))
            if hand.width_m < _OPEN_M or apart < AWAY_M:
                return f"{self.task.block} still at the gripper ({apart:.2f} m, opening {hand.width_m:.3f} m)"
        return ""


def _not_passed(world: World, task: Task) -> str:
    """Returns why the bar is not yet in the taker's hand alone, high above the table, or ""."""
    giver, taker = world.arms[task.giver], world.arms[task.taker]
    bar = world.position[task.block]
    if bar[2] < LIFTED_M:
        return f"{task.block} only {bar[2]:.2f} m above the table"
    if abs(taker.width_m - BAR_M[0]) > 0.006 or np.linalg.norm(bar - taker.position) > BAR_M[1] / 2:
        return f"{task.block} not in the {task.goal}"
    if giver.width_m < BAR_M[0] + 0.012:
        return f"{task.block} still in the {task.giver} hand (opening {giver.width_m:.3f} m)"
    return ""


def _not_lifted(world: World, task: Task) -> str:
    """Returns why the tray is not yet in the air, level and in both hands, or ""."""
    tray = world.position[task.block]
    if tray[2] < LIFTED_M:
        return f"{task.block} only {tray[2]:.2f} m above the table"
    if world.tilt[task.block] > TILT_RAD:
        return f"{task.block} tilted by {world.tilt[task.block]:.2f} rad"
    if not all(hand.width_m < HANDLE_M[0] + 0.008 for hand in world.hands):
        return f"{task.block} not in both hands"
    return ""


def _where(task: Task) -> str:
    if task.kind == "lift":
        return "in the air"
    if task.kind == "pass":
        return f"in the {task.goal}"
    return f"{'in' if task.goal == 'bowl' else 'on'} the {task.goal}"
