"""Moves the target under the policy's eyes once in a rollout, to see whether it reacts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DESCENDED_M = 0.22  # the TCP below this height above the table has come to grasp
LATEST_S = 3.0  # after the rollout began, moved anyway
_TRIES = 8  # directions, 45 degrees apart, until the simulation finds the new place good


class TargetShift:
    """Shifts the target by `distance_m` when the TCP first comes below 0.22 m, 3 s after the start at the latest.

    The direction is drawn from the seed; where the new place is not free or not on the table (the simulation says so),
    the next direction is tried.

    Args:
        distance_m: in the plane of the table.
        seed: of the direction.
        move: (dx_m, dy_m) -> future whose result has `success` and `message`.
        tcp_height_m: returns the newest TCP height in base_link, None while unknown.
        elapsed_s: returns the time since the policy drives; 0 before.
    """

    def __init__(
        self, distance_m: float, seed: int, move: Callable[[float, float], object], tcp_height_m: Callable[[], float | None],
        elapsed_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self._distance_m, self._move, self._height, self._elapsed_s = distance_m, move, tcp_height_m, elapsed_s
        self._angle = np.random.default_rng([seed, 6]).uniform(0.0, 2 * math.pi)
        self._tries = 0
        self._asked: object | None = None
        self.moved_m: tuple[float, float] | None = None
        self.moved_at_s: float | None = None
        self.message = "the rollout ended before the target was to move"

    def turn(self) -> None:
        """Call often during the rollout."""
        if self.moved_m is not None or self._tries > _TRIES or self._elapsed_s() <= 0.0:
            return
        if self._asked is None:
            height_m = self._height()
            if self._elapsed_s() >= LATEST_S or (height_m is not None and height_m < DESCENDED_M):
                self._ask()
        elif self._asked.done():
            reply = self._asked.result()
            self.message = reply.message
            if reply.success:
                self.moved_m, self.moved_at_s = self._shift(), self._elapsed_s()
            else:
                self._angle += 2 * math.pi / _TRIES
                self._ask()

    def _ask(self) -> None:
        self._tries += 1
        if self._tries <= _TRIES:
            self._asked = self._move(*self._shift())

    def _shift(self) -> tuple[float, float]:
        return self._distance_m * math.cos(self._angle), self._distance_m * math.sin(self._angle)
