"""Whether what a servo answers is new, by the servo's own clock (Realtime Tick)."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from vla_ros.core.errors import StaleData
from vla_ros.robots.dynamixel_bus import REALTIME_TICK, DynamixelBus, value_of
from vla_ros.robots.viperx_servos import named

_TICK_S, _TICKS = 1e-3, 1 << 15  # of REALTIME_TICK
_DRIFT = 0.02  # s per s by which a servo's clock may be slow
_PROOF_S = 0.02
# An answer is known by its length: nothing else is read with one of these, and two attempts hardly ever with the same.
_PROOF_LENGTHS = range(21, 28)


class ServoClock:
    """How old a servo's answer is, by the servo's own clock: one that hangs, or an answer to an earlier question, is no new measurement."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._at_s = 0.0

    def age_s(self, tick: int, now_s: float) -> float:
        """Returns the age (s) of an answer with `tick` (ms, wraps at 32768) that came in at `now_s`, beyond the least ever seen."""
        offset_s, wrap_s = now_s - tick * _TICK_S, _TICKS * _TICK_S
        if self._offset_s is None:
            self._offset_s, self._at_s = offset_s, now_s
        self._offset_s += _DRIFT * (now_s - self._at_s)
        self._at_s = now_s
        age_s = (offset_s - self._offset_s + wrap_s / 2) % wrap_s - wrap_s / 2
        if age_s < 0.0:
            self._offset_s += age_s
        return max(0.0, age_s)


def prove_alive(bus: DynamixelBus, servos: Sequence[int]) -> None:
    """Checks that each servo answers the very question that it was asked, and that its clock goes as fast as this computer's.

    Raises:
        StaleData: "link_lost": one that does not, and how far its clock went.
    """
    before = {servo: _tick(bus, servo) for servo in servos}
    time.sleep(_PROOF_S)
    for servo, (tick, asked_s, answered_s) in before.items():
        now, asked_again_s, answered_again_s = _tick(bus, servo)
        went_s = (now - tick) % _TICKS * _TICK_S
        least_s, most_s = asked_again_s - answered_s, answered_again_s - asked_s
        if not least_s * (1 - _DRIFT) - 2 * _TICK_S <= went_s <= most_s * (1 + _DRIFT) + 2 * _TICK_S:
            message = f"{bus.port}: {named(servo)} does not measure anew: its clock went {went_s:.3f} s in {most_s:.3f} s"
            raise StaleData(f"{message}; does it hang? switch the arm's power off and on", "link_lost")


def _tick(bus: DynamixelBus, servo: int) -> tuple[int, float, float]:
    """Returns a servo's clock (ms) and when (s) it was asked for and came in."""
    asked_s = time.monotonic()
    block = bus.read_block(servo, REALTIME_TICK.address, random.choice(_PROOF_LENGTHS))
    return value_of(block, REALTIME_TICK.address, REALTIME_TICK), asked_s, time.monotonic()
