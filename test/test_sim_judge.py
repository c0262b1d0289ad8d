"""The judge: what counts, what does not, and for how long it must hold."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.sim.judge import HOLD_S, Judge
from vla_ros.sim.tasks import parse_task
from vla_ros.sim.world import BLOCK_M, BOWL_FLOOR_M, PLATE_TOP_M, World

HALF = BLOCK_M / 2
START = {
    "red block": np.array([0.4, 0.1, HALF]),
    "green block": np.array([0.5, -0.1, HALF]),
    "blue block": np.array([0.6, 0.0, HALF]),
    "plate": np.array([0.5, 0.2, 0.0]),
    "bowl": np.array([0.45, -0.25, 0.0]),
}


def world(width_m: float = 0.08, tcp=(0.3, 0.0, 0.4), **moved) -> World:
    position = START | {name.replace("_", " "): np.array(spot) for name, spot in moved.items()}
    return World(np.array(tcp), np.array([1.0, 0, 0, 0]), width_m, position, {name: 0.0 for name in START if "block" in name})


def judged(text: str, after: World):
    judge = Judge(parse_task(text), world())
    judge.update(after, 1.0)
    return judge.update(after, 1.0 + HOLD_S)


PLATE = "pick up the red block and put it on the plate"
BOWL = "pick up the red block and put it in the bowl"
STACK = "stack the red block on the blue block"


@pytest.mark.parametrize(
    ("text", "spot"),
    [(PLATE, (0.51, 0.19, PLATE_TOP_M + HALF)), (BOWL, (0.46, -0.26, BOWL_FLOOR_M + HALF)), (STACK, (0.605, 0.0, BLOCK_M + HALF))],
)
def test_success(text, spot):
    outcome = judged(text, world(red_block=spot))
    assert outcome.success and not outcome.wrong_object and not outcome.failed


@pytest.mark.parametrize(
    ("text", "after", "why"),
    [
        (PLATE, world(), "m from the plate"),
        (PLATE, world(red_block=(0.45, -0.25, BOWL_FLOOR_M + HALF)), "m from the plate"),
        (PLATE, world(red_block=(0.5, 0.2, 0.12)), "off its height"),
        (PLATE, world(red_block=(0.5, 0.2, PLATE_TOP_M + HALF), tcp=(0.5, 0.2, 0.03), width_m=0.04), "still at the gripper"),
        (PLATE, world(red_block=(0.5, 0.2, PLATE_TOP_M + HALF), tcp=(0.5, 0.2, 0.05)), "still at the gripper"),
        (PLATE, world(green_block=(0.5, 0.2, PLATE_TOP_M + HALF)), "red block"),
        (BOWL, world(red_block=(0.45, -0.25, 0.08)), "off its height"),
        (STACK, world(red_block=(0.56, 0.0, HALF)), "m from the blue block"),
        (STACK, world(red_block=(0.4, 0.1, HALF), blue_block=(0.4, 0.1, BLOCK_M + HALF)), "off its height"),
    ],
)
def test_not_yet(text, after, why):
    outcome = judged(text, after)
    assert not outcome.success
    assert why in outcome.detail


def test_success_must_hold():
    judge = Judge(parse_task(PLATE), world())
    done = world(red_block=(0.5, 0.2, PLATE_TOP_M + HALF))
    assert not judge.update(done, 1.0).success
    assert not judge.update(done, 1.4).success
    assert not judge.update(world(), 1.45).success  # it slid off: counts anew
    assert not judge.update(done, 1.5).success
    assert judge.update(done, 2.0).success


@pytest.mark.parametrize("moved", [{"green_block": (0.54, -0.1, HALF)}, {"blue_block": (0.6, 0.0, HALF + 0.05)}])
def test_wrong_object_is_remembered(moved):
    judge = Judge(parse_task(PLATE), world())
    assert judge.update(world(**moved), 0.1).wrong_object
    outcome = judge.update(world(), 0.2)
    assert outcome.wrong_object and next(iter(moved)).replace("_", " ") in outcome.detail


def test_a_nudge_or_the_named_objects_are_not_wrong():
    nudged = world(green_block=(0.52, -0.1, HALF), red_block=(0.1, 0.3, HALF), blue_block=(0.65, 0.0, HALF))
    assert not judged(STACK, nudged).wrong_object


def test_moving_an_object_from_outside_is_excused():
    judge = Judge(parse_task(PLATE), world())
    judge.excuse("green block", 0.06, 0.0)
    assert not judge.update(world(green_block=(0.56, -0.1, HALF)), 0.1).wrong_object


def test_a_fallen_block_is_a_failure():
    outcome = judged(PLATE, world(red_block=(1.2, 0.0, -0.68)))
    assert outcome.failed and not outcome.success
