"""The scripted expert with two hands: passes the bar, lifts the tray, picks and places with the nearer hand. Markov, like `expert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vla_ros.core.rotations import nearest_rotvec, quat_to_rotvec
from vla_ros.sim.expert import (
    BEFORE_GRASP,
    DT_S,
    HELD,
    OPEN_MARGIN_M,
    PLACED,
    Step,
    advance,
    decide,
    half_turn,
    imagine,
    is_held,
    is_placed,
    take,
    yaw_of,
)
from vla_ros.sim.layout import Layout, Reach, down_rotvec
from vla_ros.sim.tasks import BAR, TRAY, Goal
from vla_ros.sim.world import BAR_GRIP_M, BAR_M, HANDLE_M, TRAY_GRIP_HEIGHT_M, TRAY_GRIP_M, Hand, World

ARMS = ("left", "right")
LIFT_M = 0.13
_SIDE = {"left": 1.0, "right": -1.0}  # of the y axis
_THICKNESS_M = {BAR: BAR_M[0], TRAY: HANDLE_M[0]}
_NEAR_M = 0.12


def plan_pair(world: World, goal: Goal, rows: int, layout: Layout) -> tuple[np.ndarray, int]:
    """Rolls the expert out from `world` as if every row were met exactly.

    Returns:
        [rows, 14]: pose [6] and gripper of the left arm, then of the right one; see `expert.plan_chunk`. The stage now.
    """
    chunk = np.empty((rows, 14))
    reference = {arm: np.array(down_rotvec(layout.arms[arm].heading_rad)) for arm in ARMS}
    first = None
    for row in range(rows):
        steps = _steps(world, goal, layout)
        first = max(step.stage for step in steps.values()) if first is None else first
        poses = {}
        for column, arm in enumerate(ARMS):
            position, quat = poses[arm] = advance(world.seen_by(world.arms[arm]), steps[arm], layout.arms[arm])
            reference[arm] = nearest_rotvec(quat_to_rotvec(quat), reference[arm])
            chunk[row, 7 * column : 7 * column + 7] = *position, *reference[arm], steps[arm].closed
        world = _imagine(world, goal, steps, poses, layout)
    return chunk, int(first)


def _steps(world: World, goal: Goal, layout: Layout) -> dict[str, Step]:
    if goal.kind == "pass":
        return _pass(world, goal, layout)
    if goal.kind == "lift":
        return _lift(world, layout)
    worker = _worker(world, goal, layout)
    other = "right" if worker == "left" else "left"
    steps = {worker: decide(world.seen_by(world.arms[worker]), goal, layout.arms[worker])}
    return steps | {other: _rest(world.arms[other], layout.arms[other])}


def _worker(world: World, goal: Goal, layout: Layout) -> str:
    """Which arm moves the block: the one that holds it, else the one whose hand is at it, else the one on its side."""
    views = {arm: world.seen_by(world.arms[arm]) for arm in ARMS}
    for arm, view in views.items():
        if is_held(view, goal.block):
            return arm
    block = world.position[goal.block]
    away = {arm: float(np.hypot(*(block - view.tcp_position)[:2])) for arm, view in views.items()}
    nearest = min(away, key=away.get)
    if away[nearest] < _NEAR_M or is_placed(world, goal):
        return nearest
    return "left" if block[1] > layout.meeting_m[1] else "right"


def _pass(world: World, goal: Goal, layout: Layout) -> dict[str, Step]:
    giver, taker = goal.giver, goal.taker
    giving, taking = world.arms[giver], world.arms[taker]
    ends = {arm: _end(world, BAR, arm, BAR_GRIP_M, 0.0) for arm in ARMS}
    given, taken = _holds(giving, ends[giver], BAR), _holds(taking, ends[taker], BAR)
    if taken:
        hold = Step(
            np.array([*taking.position[:2], max(taking.position[2], layout.meeting_m[2] - 0.02)]), yaw_of(taking.quat_xyzw), True, PLACED
        )
        if given or np.linalg.norm(giving.position - ends[giver]) < 0.05:
            return {giver: _let_go(giving, ends[giver], BAR), taker: replace(hold, position=taking.position)}
        return {giver: _rest(giving, layout.arms[giver]), taker: hold}
    rest = _rest(taking, layout.arms[taker])
    if not given:
        return {giver: take(giving, ends[giver], _yaw_across(world, BAR, layout.arms[giver]), BAR_M[0]), taker: rest}
    aligned = _yaw_along(0.0, layout.arms[giver])
    meeting = np.add(layout.meeting_m, (0.0, _SIDE[giver] * BAR_GRIP_M, 0.0))
    ready = np.linalg.norm(world.position[BAR] - layout.meeting_m) < 0.03 and abs(world.yaw[BAR]) < 0.15
    if ready:
        rest = take(taking, ends[taker], _yaw_across(world, BAR, layout.arms[taker]), BAR_M[0])
    return {giver: Step(_lifted_first(giving, meeting), aligned, True, HELD), taker: rest}


def _lift(world: World, layout: Layout) -> dict[str, Step]:
    ends = {arm: _end(world, TRAY, arm, TRAY_GRIP_M, TRAY_GRIP_HEIGHT_M) for arm in ARMS}
    hands = world.arms
    if not all(_holds(hands[arm], ends[arm], TRAY) for arm in ARMS):
        return {arm: take(hands[arm], ends[arm], _yaw_across(world, TRAY, layout.arms[arm]), HANDLE_M[0]) for arm in ARMS}
    level = np.mean([hand.position[2] for hand in hands.values()])
    height = min(level + 0.03, LIFT_M)  # both hands follow one height, so that the tray stays level
    goals = {arm: np.array([*hands[arm].position[:2], height]) for arm in ARMS}
    return {arm: Step(goals[arm], yaw_of(hands[arm].quat_xyzw), True, HELD) for arm in ARMS}


def _let_go(hand: Hand, end: np.ndarray, what: str) -> Step:
    """Opens, and goes straight up once the fingers are clear."""
    target = hand.position.copy()
    if hand.width_m > _THICKNESS_M[what] + OPEN_MARGIN_M:
        target[2] = end[2] + 0.10
    return Step(target, yaw_of(hand.quat_xyzw), False, PLACED)


def _rest(hand: Hand, reach: Reach) -> Step:
    """Up first, then to where the hand waits."""
    goal = np.array(reach.rest_m)
    if np.hypot(*(goal - hand.position)[:2]) > 0.03 and hand.position[2] < goal[2] - 0.03:
        goal[:2] = hand.position[:2]
    return Step(goal, reach.heading_rad, False, BEFORE_GRASP)


def _lifted_first(hand: Hand, goal: np.ndarray) -> np.ndarray:
    """Sideways only as far as the hand is off the table."""
    share = float(np.clip((hand.position[2] - 0.03) / 0.05, 0.0, 1.0))
    return np.array([*(hand.position[:2] + (goal[:2] - hand.position[:2]) * share), goal[2]])


def _end(world: World, what: str, arm: str, grip_m: float, height_m: float) -> np.ndarray:
    """Where an arm grips: on its own side of the object's y axis."""
    yaw = world.yaw[what]
    axis = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    return world.position[what] + _SIDE[arm] * np.sign(axis[1]) * grip_m * axis + (0.0, 0.0, height_m)


def _holds(hand: Hand, end: np.ndarray, what: str) -> bool:
    """Whether the fingers are closed on this end."""
    away = np.abs(end - hand.position)
    return abs(hand.width_m - _THICKNESS_M[what]) < 0.005 and float(away[:2].max()) < 0.025 and float(away[2]) < 0.025


def _yaw_across(world: World, what: str, reach: Reach) -> float:
    return _yaw_along(world.yaw[what], reach)


def _yaw_along(yaw: float, reach: Reach) -> float:
    """The hand's heading that puts its fingers on both sides of an object whose x axis has heading `yaw`; of two, the handier."""
    return reach.heading_rad + half_turn(yaw + np.pi / 2 - reach.heading_rad)


def _imagine(
    world: World, goal: Goal, steps: Mapping[str, Step], poses: Mapping[str, tuple[np.ndarray, np.ndarray]], layout: Layout
) -> World:
    """The world DT_S later: hands at their targets, fingers moved, what is held carried along."""
    if goal.kind in ("place", "stack"):
        arm = _worker(world, goal, layout)
        after = imagine(world.seen_by(world.arms[arm]), goal, steps[arm], *poses[arm], layout.arms[arm])
        moved = {arm: Hand(after.tcp_position, after.tcp_quat_xyzw, after.gripper_width_m)}
        other = "right" if arm == "left" else "left"
        return replace(after, arms={arm: moved[arm], other: _moved(world.arms[other], steps[other], poses[other], 0.0, layout.arms[other])})
    grip_m, height_m = (BAR_GRIP_M, 0.0) if goal.block == BAR else (TRAY_GRIP_M, TRAY_GRIP_HEIGHT_M)
    ends = {arm: _end(world, goal.block, arm, grip_m, height_m) for arm in ARMS}
    holders = [arm for arm in ARMS if _holds(world.arms[arm], ends[arm], goal.block)]
    hands = {}
    for arm in ARMS:
        around = float(np.abs(ends[arm] - world.arms[arm].position).max()) < 0.03
        hands[arm] = _moved(world.arms[arm], steps[arm], poses[arm], _THICKNESS_M[goal.block] if around else 0.0, layout.arms[arm])
    position = world.position[goal.block]
    if holders:
        position = position + np.mean([hands[arm].position - world.arms[arm].position for arm in holders], axis=0)
    return replace(world, arms=hands, position={**world.position, goal.block: position})


def _moved(hand: Hand, step: Step, pose: tuple[np.ndarray, np.ndarray], least_m: float, reach: Reach) -> Hand:
    width = hand.width_m + (-1 if step.closed else 1) * reach.gripper_m_s * DT_S
    return Hand(*pose, float(np.clip(width, max(least_m, 0.0), reach.width_max_m)))
