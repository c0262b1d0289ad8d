"""A scripted expert. It is Markov: what to do follows from the measured state alone, so it recovers from whatever happened.

It says only what a policy can say: an absolute TCP pose and an open or closed gripper for every row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_ros.core.rotations import conjugate, multiply, quat_to_rotvec, rotvec_to_quat
from vla_ros.sim.drawer import RIM_M
from vla_ros.sim.layout import Reach, down_rotvec
from vla_ros.sim.tasks import BLOCKS, DRAWER, Goal
from vla_ros.sim.world import (
    BLOCK_M,
    BOWL_RADIUS_M,
    BOWL_RIM_M,
    PILE_M,
    PLATE_RADIUS_M,
    Hand,
    World,
    in_drawer,
    resting_height_m,
)

DT_S = 0.1
BEFORE_GRASP, HELD, PLACED = 0, 1, 2
CHANNELS = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.closed")

TURN_RAD_S = 1.5
APPROACH = 0.45  # share of the remaining way that a row covers, where that is less than full speed
OPEN_MARGIN_M = 0.018  # wider than what they hold by this, fingers are open
GONE_M = 0.06  # farther from a hand than this a thing is out of its way
HOVER_M = 0.10  # above a block before coming down on it
OPEN_M = BLOCK_M + 0.018
FRANKA = Reach()
# Where each of three blocks goes in the bowl, from its middle: side by side across the fingers' axis, so that they find room.
_SLOTS_M = ((-0.0215, -0.0135), (0.0215, -0.0135), (0.0, 0.0285))
_DOWN = rotvec_to_quat(np.array(down_rotvec(0.0)))


@dataclass(frozen=True)
class Step:
    """Where the hand should go in the end of this motion; `lateral` < 1 slows the horizontal part."""

    position: np.ndarray
    yaw: float
    closed: bool
    stage: int


def decide(world: World, goal: Goal, reach: Reach = FRANKA) -> Step:
    """What to do now, given everything."""
    block = world.position[goal.block]
    if is_placed(world, goal):
        return leave(world, block, reach)
    if is_held(world, goal.block):
        return _carry(world, goal, reach)
    return _fetch(world, goal.block, reach)


def is_held(world: World, block: str) -> bool:
    """Whether `block` is between the fingers and they touch it."""
    near = np.abs(world.position[block] - world.tcp_position)
    return abs(world.gripper_width_m - BLOCK_M) < 0.005 and float(near[:2].max()) < 0.025 and near[2] < 0.025


def is_placed(world: World, goal: Goal) -> bool:
    """Whether the block lies at its goal, whatever the hand does."""
    block = world.position[goal.block]
    away = float(np.hypot(*(block - world.position[goal.goal])[:2]))
    high = float(block[2]) - resting_height_m(goal.goal, world.position)
    let_go = world.gripper_width_m > BLOCK_M + 0.005
    if goal.slot is not None:
        return away < BOWL_RADIUS_M and high < PILE_M and (let_go or np.linalg.norm(block - world.tcp_position) > GONE_M)
    if goal.goal == DRAWER:
        return in_drawer(world, goal.block, below_m=0.09) and (high < 0.012 or let_go)
    if goal.goal == "bowl":  # also on its way down from the rim, once the fingers let go
        return away < BOWL_RADIUS_M - 0.012 and (high < 0.012 or (high < 0.06 and let_go))
    return away < (PLATE_RADIUS_M - 0.02 if goal.goal == "plate" else 0.018) and abs(high) < 0.006


def _fetch(world: World, name: str, reach: Reach) -> Step:
    block, yaw = world.position[name], _grasp_yaw(world, name, reach.heading_rad)
    offset = block - world.tcp_position
    away, turn = float(np.hypot(offset[0], offset[1])), abs(_quarter(yaw - yaw_of(world.tcp_quat_xyzw)))
    # A funnel: the hand may only be as low as it is well placed, so that it never pushes the block or a neighbour.
    above = min(HOVER_M, max(4.0 * max(away - 0.008, 0.0), 0.25 * max(turn - 0.10, 0.0)))
    target = np.array([block[0], block[1], max(block[2], 0.018) + above])
    # Once the fingers close, a shaken hand does not start all over.
    slack = 2.0 if world.gripper_width_m < reach.width_max_m - 0.005 else 1.0
    around = away < 0.007 * slack and abs(offset[2]) < 0.010 * slack and turn < 0.12 * slack
    if around and world.gripper_width_m > BLOCK_M - 0.008:
        return Step(target, yaw, True, BEFORE_GRASP)
    if world.gripper_width_m < OPEN_M:
        # Closed beside the block, on it or on nothing: up and open first.
        target[2] = max(target[2], block[2] + 0.07)
        if world.tcp_position[2] < target[2] - 0.01:
            target[:2] = world.tcp_position[:2]
    elif world.tcp_position[2] < block[2] + above - 0.03:
        target[:2] = world.tcp_position[:2]
    return Step(target, yaw, False, BEFORE_GRASP)


def drop_point(world: World, goal: Goal) -> np.ndarray:
    """Where the centre of a held block is when the fingers let go: [3] m."""
    point = world.position[goal.goal].copy()
    point[2] = resting_height_m(goal.goal, world.position) + 0.002
    if goal.slot is not None:
        point[:2] += _SLOTS_M[goal.slot]
        others = [world.position[name] for name in BLOCKS if name != goal.block]
        beside = [other[2] + BLOCK_M + 0.004 for other in others if np.hypot(*(other - point)[:2]) < 1.7 * BLOCK_M]
        point[2] = max([BOWL_RIM_M + 0.016, *beside])  # let go above the rim and the neighbours, it drops the rest
    elif goal.goal in ("bowl", DRAWER):
        point[2] = BOWL_RIM_M - 0.006 if goal.goal == "bowl" else RIM_M + 0.010  # the fingers stay above the rim, the block drops a little
    return point


def _carry(world: World, goal: Goal, reach: Reach) -> Step:
    block, point = world.position[goal.block], drop_point(world, goal)
    offset, release = point[:2] - block[:2], float(point[2])
    away = float(np.hypot(*offset))
    on_block = goal.goal in BLOCKS
    here = yaw_of(world.tcp_quat_xyzw)
    yaw = here + _quarter(world.yaw[goal.goal] - world.yaw[goal.block]) if on_block else reach.heading_rad
    turn = abs(yaw - here) if on_block else 0.0
    near = 0.004 if on_block or goal.slot is not None else 0.010
    above = min(reach.carry_m - release, max(3.0 * max(away - near, 0.0), 0.3 * max(turn - 0.08, 0.0)))
    target = world.tcp_position + np.array([*offset, release + above - block[2]])
    clear = float(np.clip((block[2] - 0.035) / 0.05, 0.0, 1.0)) if away > 0.06 else 1.0
    target[:2] = world.tcp_position[:2] + offset * clear
    down = block[2] < release + 0.005 and away < near + 0.004
    return Step(target, yaw, not down, HELD)


def leave(world: World, block: np.ndarray, reach: Reach) -> Step:
    """Opens, and goes up once the fingers are clear of the block."""
    target, here = world.tcp_position.copy(), yaw_of(world.tcp_quat_xyzw)
    clear = world.gripper_width_m > OPEN_M or np.linalg.norm(block - world.tcp_position) > GONE_M
    if clear:
        target[2] = reach.retreat_m
    high = clear and world.tcp_position[2] > reach.retreat_m - 0.07
    return Step(target, reach.heading_rad if high else here, False, PLACED)


def take(hand: Hand, point: np.ndarray, yaw: float, thickness_m: float) -> Step:
    """Comes down on `point` through a funnel with open fingers, and closes there on a thing that looks alike from behind."""
    offset = point - hand.position
    away, turn = float(np.hypot(*offset[:2])), abs(half_turn(yaw - yaw_of(hand.quat_xyzw)))
    slack = 2.0 if hand.width_m < thickness_m + OPEN_MARGIN_M else 1.0
    if away < 0.008 * slack and abs(offset[2]) < 0.010 * slack and turn < 0.12 * slack:
        return Step(point, yaw, True, BEFORE_GRASP)
    above = min(HOVER_M, max(4.0 * max(away - 0.010, 0.0), 0.25 * max(turn - 0.10, 0.0)))
    target = np.add(point, (0.0, 0.0, above))
    if hand.width_m < thickness_m + OPEN_MARGIN_M:
        target[2] = max(target[2], point[2] + 0.07)
        if hand.position[2] < target[2] - 0.01:
            target[:2] = hand.position[:2]
    elif hand.position[2] < point[2] + above - 0.03:
        target[:2] = hand.position[:2]
    return Step(target, yaw, False, BEFORE_GRASP)


def advance(world: World, step: Step, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """One row on the way: the pose (position [3], quat_xyzw [4]) that the hand should have DT_S from now."""
    way = step.position - world.tcp_position
    length = float(np.linalg.norm(way))
    stride = min(length * APPROACH + 0.002, reach.speed_m_s * DT_S, length)
    position = world.tcp_position + way * (stride / length if length > 1e-9 else 0.0)
    upright = multiply(rotvec_to_quat(np.array([0.0, 0.0, step.yaw])), _DOWN)
    turn = quat_to_rotvec(multiply(upright, conjugate(world.tcp_quat_xyzw)))
    angle = float(np.linalg.norm(turn))
    share = min(1.0, max(APPROACH, 0.02 / max(angle, 1e-9)), TURN_RAD_S * DT_S / max(angle, 1e-9))
    return position, multiply(rotvec_to_quat(turn * share), world.tcp_quat_xyzw)


def imagine(world: World, goal: Goal, step: Step, position: np.ndarray, quat: np.ndarray, reach: Reach) -> World:
    """The world DT_S later: hand at its target, fingers moved, a held block carried along, a released one fallen."""
    around = float(np.abs(world.position[goal.block] - world.tcp_position).max()) < 0.03
    width = world.gripper_width_m + (-1 if step.closed else 1) * reach.gripper_m_s * DT_S
    width = float(np.clip(width, BLOCK_M if around else 0.0, reach.width_max_m))
    held = is_held(world, goal.block)
    after = replace(world, tcp_position=position, tcp_quat_xyzw=quat, gripper_width_m=width)
    if not held:
        return after
    block = world.position[goal.block] + position - world.tcp_position
    if width < BLOCK_M + 0.005:
        return after.with_object(goal.block, block, world.yaw[goal.block] + yaw_of(quat) - yaw_of(world.tcp_quat_xyzw))
    away = float(np.hypot(*(block - world.position[goal.goal])[:2]))
    over = away < (0.03 if goal.goal in BLOCKS else BOWL_RADIUS_M)
    block[2] = resting_height_m(goal.goal, world.position) if over else BLOCK_M / 2
    return after.with_object(goal.block, block, world.yaw[goal.block])


def _grasp_yaw(world: World, block: str, heading_rad: float) -> float:
    """The hand's heading across two faces of the block: near to straight ahead, little to turn, room for the fingers."""
    now, here = yaw_of(world.tcp_quat_xyzw), world.position[block]
    others = [world.position[name] for name in BLOCKS if name != block]

    def cost(yaw: float) -> float:
        across = np.array([np.sin(yaw), -np.cos(yaw)])  # the fingers' axis
        crowded = 0.0
        for other in others:
            gap = other[:2] - here[:2]
            along, beside = abs(gap @ across), abs(gap[0] * across[1] - gap[1] * across[0])
            if along < 0.085 and beside < 0.045 and abs(other[2] - here[2]) < 0.03:
                crowded = 3.0
        return abs(_wrap(yaw - now)) + 0.7 * abs(yaw - heading_rad) + crowded

    base = heading_rad + _quarter(world.yaw[block] - heading_rad)
    return min((base, base - np.pi / 2, base + np.pi / 2), key=cost)


def yaw_of(quat_xyzw: np.ndarray) -> float:
    """Heading (rad) of the hand's x axis."""
    x, y, z, w = quat_xyzw
    return float(np.arctan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z)))


def half_turn(angle: float) -> float:
    """The same angle up to half turns, in -pi/2 .. pi/2."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def _quarter(angle: float) -> float:
    """The same angle up to quarter turns, in -pi/4 .. pi/4: a block looks alike from four sides."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _wrap(angle: float) -> float:
    """The same angle in -pi .. pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
