"""The scripted expert for whole tasks: which goal is next, which atomic skill that takes, and the chunk that a policy would say.

It stays Markov: goals are chosen from the measured state alone, so a block that jumps out of the bowl is simply fetched again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core.rotations import nearest_rotvec, quat_to_rotvec
from vla_ros.sim.bimanual import plan_pair
from vla_ros.sim.expert import (
    BEFORE_GRASP,
    GONE_M,
    Step,
    advance,
    decide,
    imagine,
    is_held,
    is_placed,
    leave,
)
from vla_ros.sim.handle import at_fin, imagine_drawer, is_moved, move_drawer, release_fin, set_aside
from vla_ros.sim.layout import Layout, Reach, down_rotvec
from vla_ros.sim.tasks import DRAWER, Task
from vla_ros.sim.world import World


@dataclass(frozen=True)
class Plan:
    """`rows` [T, D]: row k is what to command k * DT_S from now (one step ahead of where the hands are then), for each arm its TCP pose
    (m, rotation vector rad) and whether its gripper is closed; `stage` now: BEFORE_GRASP, HELD or PLACED; `skill` now: index into the
    task's `chain`.
    """

    rows: np.ndarray
    stage: int
    skill: int


def plan(world: World, task: Task, rows: int, layout: Layout) -> Plan:
    """Rolls the expert out from `world` as if every row were met exactly."""
    if layout.bimanual:
        chunk, stage = plan_pair(world, task.goals[0], rows, layout)
        return Plan(chunk, stage, _skill(task, 0, stage))
    reach = next(iter(layout.arms.values()))
    chunk = np.empty((rows, 7))
    reference = np.array(down_rotvec(reach.heading_rad))
    for row in range(rows):
        number, step = _next(world, task, reach)
        if row == 0:
            first = number, step.stage
        position, quat = advance(world, step, reach)
        reference = nearest_rotvec(quat_to_rotvec(quat), reference)
        chunk[row] = *position, *reference, step.closed
        held = [goal for goal in task.goals if goal.block != DRAWER and is_held(world, goal.block)]
        goal = held[0] if held else task.goals[number]
        if goal.block == DRAWER:
            world = imagine_drawer(world, step, position, quat, reach)
        else:
            world = imagine(world, goal, step, position, quat, reach)
    return Plan(chunk, first[1], _skill(task, *first))


def _next(world: World, task: Task, reach: Reach) -> tuple[int, Step]:
    """Returns the number of the goal that is worked on, and what to do for it now."""
    if len(task.goals) == 1:
        return 0, decide(world, task.goals[0], reach)
    placed = [number for number, goal in enumerate(task.goals) if goal.block != DRAWER and is_placed(world, goal)]
    if placed:
        # What was brought about is let go before anything else is begun.
        number = min(placed, key=lambda number: _away_m(world, task.goals[number].block))
        if _in_the_way(world, task.goals[number].block):
            return number, leave(world, world.position[task.goals[number].block], reach)
    return _drawer_step(world, task, reach) if task.drawer else _clear_step(world, task, reach)


def _away_m(world: World, block: str) -> float:
    return float(np.linalg.norm(world.position[block] - world.tcp_position))


def _in_the_way(world: World, block: str) -> bool:
    """Whether the hand is still around a block that it does not hold any more."""
    return _away_m(world, block) < GONE_M


def _clear_step(world: World, task: Task, reach: Reach) -> tuple[int, Step]:
    open_goals = [number for number, goal in enumerate(task.goals) if not is_placed(world, goal)]
    held = [number for number in open_goals if is_held(world, task.goals[number].block)]
    number = (held or open_goals or [len(task.goals) - 1])[0]
    return number, decide(world, task.goals[number], reach)


def _drawer_step(world: World, task: Task, reach: Reach) -> tuple[int, Step]:
    opening, putting, closing = task.goals
    if is_placed(world, putting):
        if not is_moved(world, closing):
            return 2, move_drawer(world, closing, reach)
        return 2, release_fin(world) if at_fin(world) else leave(world, world.position[putting.block], reach)
    if not is_moved(world, opening):
        held = is_held(world, putting.block)
        return 0, set_aside(world, putting.block, reach) if held else move_drawer(world, opening, reach)
    if at_fin(world):
        return 0, release_fin(world)
    return 1, decide(world, putting, reach)


def _skill(task: Task, number: int, stage: int) -> int:
    """Index into the chain: a goal of two skills is at its first until the thing is held."""
    before = sum(len(goal.skills) for goal in task.goals[:number])
    return before + (stage != BEFORE_GRASP and len(task.goals[number].skills) > 1)
