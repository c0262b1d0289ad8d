"""Success and mistakes, from where things lie; never from what was commanded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.sim.drawer import CLOSED_M, FIN_M, OPEN_M
from vla_ros.sim.tasks import BLOCKS, DRAWER, Goal, Task
from vla_ros.sim.world import (
    BAR_M,
    BLOCK_M,
    BOWL_RADIUS_M,
    HANDLE_M,
    PILE_M,
    PLATE_RADIUS_M,
    World,
    grip_point,
    in_drawer,
    resting_height_m,
)

HOLD_S = 0.5
MOVED_M = 0.03
AWAY_M = 0.06
LIFTED_M, TILT_RAD = 0.06, 0.2
_RELEASED_M = BLOCK_M + 0.012
_FALLEN_M = -0.05


@dataclass(frozen=True)
class Outcome:
    """`success` now; `failed`: a block fell off the table; `wrong_object`: a block that the task does not name was moved, ever.

    `steps_done` of the task's `steps` are done now; a step can be undone again.
    """

    success: bool
    failed: bool
    wrong_object: bool
    detail: str
    steps_done: int = 0
    steps: int = 1


class Judge:
    """Watches one task from its start. Times are of the simulation, in s."""

    def __init__(self, task: Task, world: World) -> None:
        self.task = task
        self._start = {name: position.copy() for name, position in world.position.items()}
        self._since_s: float | None = None
        self._wrong = ""
        self._outcome = Outcome(False, False, False, "not begun", 0, len(task.goals))

    def excuse(self, name: str, dx_m: float, dy_m: float) -> None:
        """Tells of an object that was moved from outside."""
        self._start[name] = self._start[name] + (dx_m, dy_m, 0.0)

    def update(self, world: World, time_s: float) -> Outcome:
        """Judges this instant; the task counts when all its goals have been met for `HOLD_S`."""
        for name in BLOCKS:
            moved = world.position[name] - self._start[name]
            if name not in self.task.named and not self._wrong and (np.hypot(*moved[:2]) > MOVED_M or moved[2] > MOVED_M):
                self._wrong = name
        missing = [_missing(world, self.task, goal) for goal in self.task.goals]
        steps, done = len(missing), missing.count("")
        if done < steps:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = time_s
        success = self._since_s is not None and time_s - self._since_s >= HOLD_S - 1e-6
        failed = any(world.position[block][2] < _FALLEN_M for block in self.task.blocks)
        detail = next(filter(None, missing), _done(self.task) if success else "waiting that it stays so")
        if steps > 1:
            detail = f"step {min(done + 1, steps)} of {steps}: {detail}"
        detail += f"; moved the {self._wrong}" if self._wrong else ""
        self._outcome = Outcome(success, failed, bool(self._wrong), detail, done, steps)
        return self._outcome

    @property
    def outcome(self) -> Outcome:
        """The newest judgement."""
        return self._outcome


def _missing(world: World, task: Task, goal: Goal) -> str:
    """Returns what is not yet as one goal wants it, or ""."""
    if goal.kind == "pass":
        return _fallen(world, goal) or _not_passed(world, goal)
    if goal.kind == "lift":
        return _fallen(world, goal) or _not_lifted(world, goal)
    if goal.kind == "open":
        return _not_open(world, task)
    if goal.kind == "close":
        return _not_closed(world, task)
    return _fallen(world, goal) or _not_placed(world, goal) or _at_gripper(world, goal.block, alone=len(task.goals) == 1)


def _fallen(world: World, goal: Goal) -> str:
    return f"{goal.block} fell off the table" if world.position[goal.block][2] < _FALLEN_M else ""


def _not_placed(world: World, goal: Goal) -> str:
    """Returns why the block does not lie where it should, or ""."""
    block, place = world.position[goal.block], world.position[goal.goal]
    away = float(np.hypot(*(block - place)[:2]))
    room = {"plate": PLATE_RADIUS_M - 0.01, "bowl": BOWL_RADIUS_M}.get(goal.goal, BLOCK_M * 0.7)
    if goal.goal == DRAWER:
        if not in_drawer(world, goal.block):
            return f"{goal.block} {away:.2f} m from the {goal.goal}"
    elif away > room:
        return f"{goal.block} {away:.2f} m from the {goal.goal}"
    high = float(block[2]) - resting_height_m(goal.goal, world.position)
    # In the bowl or drawer it may lean against the wall.
    most = 0.008 if goal.goal not in ("bowl", DRAWER) else 0.022 if goal.slot is None else PILE_M
    return "" if -0.006 < high < most else f"{goal.block} {high:+.3f} m off its height {_where(goal)}"


def _at_gripper(world: World, block: str, alone: bool) -> str:
    """Returns which hand has not let go, or ""; a hand that has more to do than this block may hold something else."""
    for hand in world.hands:
        apart = float(np.linalg.norm(world.position[block] - hand.position))
        if apart < AWAY_M or (alone and hand.width_m < _RELEASED_M):
            return f"{block} still at the gripper ({apart:.2f} m, opening {hand.width_m:.3f} m)"
    return ""


def _not_open(world: World, task: Task) -> str:
    """Returns why the drawer is not open, or ""; what lies in it says that it was."""
    inside = any(in_drawer(world, block) for block in task.blocks)
    return "" if inside or world.opening_m >= OPEN_M else f"{DRAWER} open by {world.opening_m:.3f} m"


def _not_closed(world: World, task: Task) -> str:
    """Returns why the drawer is not closed on what belongs into it, or ""."""
    for goal in task.goals:
        if goal.goal == DRAWER and (missing := _not_placed(world, goal)):
            return missing
    if world.opening_m > CLOSED_M:
        return f"{DRAWER} open by {world.opening_m:.3f} m"
    for hand in world.hands:
        apart = float(np.linalg.norm(grip_point(world) - hand.position))
        if apart < AWAY_M and hand.width_m < FIN_M[1] + 0.012:
            return f"{DRAWER} still in the gripper (opening {hand.width_m:.3f} m)"
    return ""


def _not_passed(world: World, goal: Goal) -> str:
    """Returns why the bar is not yet in the taker's hand alone, high above the table, or ""."""
    giver, taker = world.arms[goal.giver], world.arms[goal.taker]
    bar = world.position[goal.block]
    if bar[2] < LIFTED_M:
        return f"{goal.block} only {bar[2]:.2f} m above the table"
    if abs(taker.width_m - BAR_M[0]) > 0.006 or np.linalg.norm(bar - taker.position) > BAR_M[1] / 2:
        return f"{goal.block} not in the {goal.goal}"
    if giver.width_m < BAR_M[0] + 0.012:
        return f"{goal.block} still in the {goal.giver} hand (opening {giver.width_m:.3f} m)"
    return ""


def _not_lifted(world: World, goal: Goal) -> str:
    """Returns why the tray is not yet in the air, level and in both hands, or ""."""
    tray = world.position[goal.block]
    if tray[2] < LIFTED_M:
        return f"{goal.block} only {tray[2]:.2f} m above the table"
    if world.tilt[goal.block] > TILT_RAD:
        return f"{goal.block} tilted by {world.tilt[goal.block]:.2f} rad"
    if not all(hand.width_m < HANDLE_M[0] + 0.008 for hand in world.hands):
        return f"{goal.block} not in both hands"
    return ""


def _done(task: Task) -> str:
    return f"{task.blocks[0]} is {_where(task.goals[0])}" if len(task.goals) == 1 else "all done"


def _where(goal: Goal) -> str:
    if goal.kind == "lift":
        return "in the air"
    if goal.kind == "pass":
        return f"in the {goal.goal}"
    return f"{'in' if goal.goal in ('bowl', DRAWER) else 'on'} the {goal.goal}"
