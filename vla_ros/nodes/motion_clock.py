"""The time of a motion: it stands still while the robots do."""

from __future__ import annotations

from collections import deque

_HOLDS = 8  # more than come between an observation and its chunk


class MotionClock:
    """Places chunks in the motion. Robots that stand set out with the first row of what they were seen at rest for, and go on after a hold
    where they stopped; the row for now by the clock on the wall lies as far from them as they would have come meanwhile.
    """

    def __init__(self) -> None:
        self._standing_ns: int | None = 0
        self._stood: deque[tuple[int, int]] = deque(maxlen=_HOLDS)

    def stand(self, now_ns: int) -> None:
        """The robots stand, from now on or still."""
        if self._standing_ns is None:
            self._standing_ns = now_ns

    def move(self, now_ns: int) -> None:
        """The robots move, from now on or still."""
        if self._standing_ns is not None:
            self._stood.append((self._standing_ns, now_ns))
            self._standing_ns = None

    def place(self, stamp_ns: int, now_ns: int) -> int:
        """Returns the stamp of an observation, later by as long as the robots stood since."""
        holds = self._stood if self._standing_ns is None else [*self._stood, (self._standing_ns, now_ns)]
        return stamp_ns + sum(max(0, until_ns - max(since_ns, stamp_ns)) for since_ns, until_ns in holds)
