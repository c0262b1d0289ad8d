"""How late a timer is, against absolute deadlines on the steady clock."""

from __future__ import annotations


class Pace:
    """The deadlines of a timer that was made at `start_ns` (steady) with `period_ns`, and skips what it misses altogether as rcl's does."""

    def __init__(self, start_ns: int, period_ns: int) -> None:
        self._period_ns = period_ns
        self._due_ns = start_ns + period_ns

    def late_s(self, now_ns: int) -> float:
        """The timer fired at `now_ns`: returns how long after its deadline, s, and goes on to the next deadline."""
        late_ns = now_ns - self._due_ns
        self._due_ns += self._period_ns * (1 + max(0, late_ns) // self._period_ns)
        return max(0, late_ns) * 1e-9
