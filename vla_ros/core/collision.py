"""How far apart two things are, and whether a motion may bring them closer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

_NOISE_M = 2e-6  # of the distance between two shapes
_STRIDE_RAD = 0.15  # along a long step a link is looked at this often: at 1 m from the joint every 15 cm


class Gap(NamedTuple):
    """The distance between two links, or a link and "table" (m, negative where they overlap); `margin_m` is how close they may come."""

    distance_m: float
    first: str
    second: str
    margin_m: float

    @property
    def room_m(self) -> float:
        """What is left until they are too close."""
        return self.distance_m - self.margin_m


Clearance = Callable[[np.ndarray], Gap]  # joint positions [N] rad -> the pair with the least room


def approach(clearance: Clearance, measured: np.ndarray, *goals: np.ndarray) -> Gap | None:
    """Returns the first pair that comes too close on the straight way from `measured` [N] rad over all `goals` [N], None on a free way.

    Too close is below its margin and with less room than there is now: out of a narrow place every way is free that widens it.
    A distance that is not a number is too close.
    """
    now: Gap | None = None
    for position in _way(measured, goals):
        gap = clearance(position)
        if not gap.room_m >= 0.0:
            now = now or clearance(measured)
            if not gap.room_m >= now.room_m - _NOISE_M:
                return gap
    return None


def _way(start: np.ndarray, goals: tuple[np.ndarray, ...]) -> Iterator[np.ndarray]:
    for goal in goals:
        strides = int(np.ceil(np.abs(goal - start).max() / _STRIDE_RAD))
        for stride in range(1, strides + 1):
            yield start + (goal - start) * (stride / strides)
        start = goal
