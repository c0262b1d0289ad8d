"""Where a PiPer that is told to stop can stand without turning back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ACCELERATION_RAD_S2 = 5.0  # the most that the arm can be set to (0x475)
# From a measurement until an order that follows from it takes hold: 5 ms of feedback period, bus and SDK, and the drives' own lag.
DELAY_S = 0.031
_AHEAD_S, _BEHIND_RAD = 0.02, 0.0005  # so near, an arm goes on to the target that it has


def standing_point(position: np.ndarray, velocity: np.ndarray, targets: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
    """Returns where each joint comes to rest at once, braking as hard as it can: [N] rad, to be sent as the next target.

    The measurement is late: until the order is there, the arm goes on heading for what it was sent. So an arm that stands stays (whatever
    its drives are off by), one that follows ends at its last target, one that has been told to turn back ends where it has turned, and one
    that is far behind its target does not go there.

    Args:
        position, velocity: measured, rad and rad/s.
        targets: what the arm was last sent, and how long ago: (s, [N] rad), oldest first, at least one.
    """
    left_s = DELAY_S
    ends_s = [min(left_s, age_s) for age_s, _ in targets[1:]] + [0.0]
    for (_, target), end_s in zip(targets, ends_s, strict=True):
        position, velocity = _heading(target, position, velocity, left_s - end_s)
        left_s = end_s
    rest = position + velocity * np.abs(velocity) / (2 * ACCELERATION_RAD_S2)
    ahead = (target - rest) * np.sign(velocity)
    return np.where((ahead > -_BEHIND_RAD) & (ahead < _AHEAD_S * np.abs(velocity)), target, rest)


def _heading(target: np.ndarray, position: np.ndarray, velocity: np.ndarray, for_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity `for_s` later, of an arm that takes on the speed from which it can stop at `target`, or comes near it."""
    gain, then = ACCELERATION_RAD_S2 * for_s, velocity
    for _ in range(2):  # the speed changes the way that is left, and that the speed: twice is near enough
        there = position + (velocity + then) / 2 * for_s
        way = target - there
        wanted = np.sign(way) * np.sqrt(2 * ACCELERATION_RAD_S2 * np.abs(way))
        then = velocity + np.clip(wanted - velocity, -gain, gain)
    return there, then
