"""The scripted expert at the drawer: takes its fin from above, pulls or pushes, lets go. Markov, like `expert`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_ros.sim.drawer import CLOSED_M, FIN_M, OPEN_M, TRAVEL_M
from vla_ros.sim.expert import DT_S, GONE_M, HELD, OPEN_MARGIN_M, PLACED, Step, take, yaw_of
from vla_ros.sim.layout import Reach
from vla_ros.sim.tasks import BLOCKS, DRAWER, OPEN, Goal
from vla_ros.sim.world import BLOCK_M, World, grip_point, in_drawer

_PULLED_M, _PUSHED_M = TRAVEL_M - 0.010, 0.003  # a hand that holds the fin goes on until here
_AHEAD_M = 0.04  # of the fin, where the pulling hand aims: past the stop, so that it does not slow down before it
_THICKNESS_M = FIN_M[1]
_ASIDE_M = 0.21  # from the cabinet's middle to where a block can be set down
_ASIDE_X_M = (0.38, 0.46, 0.54, 0.62)


def is_moved(world: World, goal: Goal) -> bool:
    """Whether the drawer is as open, or as closed, as it should be; the hand that holds it moves it a little farther than that."""
    if goal.goal == OPEN:
        return world.opening_m >= (_PULLED_M if holds_fin(world) else OPEN_M)
    return world.opening_m <= (_PUSHED_M if holds_fin(world) else CLOSED_M)


def holds_fin(world: World) -> bool:
    """Whether the fingers are closed on the fin."""
    away = np.abs(grip_point(world) - world.tcp_position)
    return abs(world.gripper_width_m - _THICKNESS_M) < 0.005 and float(away[:2].max()) < 0.025 and float(away[2]) < 0.020


def at_fin(world: World) -> bool:
    """Whether the fingers are still around the fin and not open."""
    near = float(np.linalg.norm(grip_point(world) - world.tcp_position)) < GONE_M
    return near and world.gripper_width_m < _THICKNESS_M + OPEN_MARGIN_M


def move_drawer(world: World, goal: Goal, reach: Reach) -> Step:
    """What to do now to open or close the drawer."""
    if not holds_fin(world):
        hand = world.hands[0]
        yaw = reach.heading_rad
        return take(hand, grip_point(world), yaw, _THICKNESS_M)
    side = 1.0 if goal.goal == OPEN else -1.0
    target = np.array([world.tcp_position[0] + side * _AHEAD_M, *grip_point(world)[1:]])
    return Step(target, reach.heading_rad, True, HELD)


def release_fin(world: World) -> Step:
    """Opens where the hand is."""
    return Step(world.tcp_position.copy(), yaw_of(world.tcp_quat_xyzw), False, PLACED)


def set_aside(world: World, block: str, reach: Reach) -> Step:
    """Puts a held block down on the table, away from the drawer that turned out to be closed."""
    spot_y = world.position[DRAWER][1] - np.sign(world.position[DRAWER][1]) * _ASIDE_M
    others = [world.position[name][:2] for name in BLOCKS if name != block]

    def room(spot: np.ndarray) -> float:
        return min(float(np.hypot(*(spot - other))) for other in others)

    spot = max((np.array([x, spot_y]) for x in _ASIDE_X_M), key=room)
    offset = spot - world.position[block][:2]
    away = float(np.hypot(*offset))
    height = BLOCK_M / 2 + 0.004 + min(reach.carry_m, max(3.0 * (away - 0.02), 0.0))
    target = world.tcp_position + np.array([*offset, height - world.position[block][2]])
    if world.position[block][2] < 0.09 and away > GONE_M:
        target[:2] = world.tcp_position[:2]
    down = away < 0.025 and world.position[block][2] < BLOCK_M / 2 + 0.008
    return Step(target, reach.heading_rad, not down, HELD)


def imagine_drawer(world: World, step: Step, position: np.ndarray, quat: np.ndarray, reach: Reach) -> World:
    """The world DT_S later: hand at its target, fingers moved, a held drawer pulled along with what lies in it."""
    around = float(np.abs(grip_point(world) - world.tcp_position).max()) < 0.03
    width = world.gripper_width_m + (-1 if step.closed else 1) * reach.gripper_m_s * DT_S
    width = float(np.clip(width, _THICKNESS_M if around else 0.0, reach.width_max_m))
    after = replace(world, tcp_position=position, tcp_quat_xyzw=quat, gripper_width_m=width)
    if not holds_fin(world):
        return after
    opening = float(np.clip(world.opening_m + position[0] - world.tcp_position[0], 0.0, TRAVEL_M))
    way = np.array([opening - world.opening_m, 0.0, 0.0])
    moved = {name: world.position[name] + way for name in BLOCKS if in_drawer(world, name)}
    after = replace(after, tcp_position=np.array([world.tcp_position[0] + way[0], *position[1:]]), opening_m=opening)
    return replace(after, position={**world.position, **moved, DRAWER: world.position[DRAWER] + way})
