"""Whether the pictures of a camera are news: judged by capture stamp and by content."""

from __future__ import annotations

import zlib

import numpy as np

from vla_ros.core.types import Frame

FUTURE_S = 0.05  # two machines' clocks may differ by so much; a stamp further ahead is not a capture time
_STRIDE = 8  # every 8th pixel of every 8th row tells a frozen picture from a live one: a sensor's noise is everywhere


class Freshness:
    """Judges the frames of one camera. Time is passed in.

    Args:
        frozen_after_s: identical pictures for so long, while their stamps advance, are a frozen camera; None switches the test off
            (a simulated scene at rest gives identical pictures).

    Attributes:
        stamp_ns: of the newest frame that was news, -1 before the first.
        same: over how many frames the content has been the same.
        refused: what is wrong with the stamps that come now; "" when they are right.
    """

    def __init__(self, frozen_after_s: float | None) -> None:
        self._frozen_after_s = frozen_after_s
        self._checksum, self._since_ns = -1, 0
        self.stamp_ns, self.same = -1, 0
        self.refused = ""

    def add(self, frame: Frame, now_ns: int | None = None) -> bool:
        """Whether `frame` is newer than the last one; with `now_ns` (ROS time), one from the future is refused, lest it hide the next."""
        if now_ns is not None and frame.stamp_ns - now_ns > FUTURE_S * 1e9:
            self.refused = f"stamps lie in the future, by {(frame.stamp_ns - now_ns) * 1e-9:.2f} s; are the clocks synchronised?"
            return False
        if frame.stamp_ns <= self.stamp_ns:
            step_s = (self.stamp_ns - frame.stamp_ns) * 1e-9
            self.refused = f"stamps run backwards, by {step_s:.3f} s" if step_s else "stamps stand still"
            return False
        checksum = zlib.crc32(np.ascontiguousarray(frame.image[::_STRIDE, ::_STRIDE])) if self._frozen_after_s is not None else -1
        if checksum != self._checksum or not self.same:
            self._checksum, self._since_ns, self.same = checksum, frame.stamp_ns, 0
        self.same += 1
        self.stamp_ns, self.refused = frame.stamp_ns, ""
        return True

    def frozen_s(self) -> float:
        """For how long the picture has not changed, s; 0 when it is not tested or still shorter than allowed."""
        same_s = (self.stamp_ns - self._since_ns) * 1e-9
        return same_s if self._frozen_after_s is not None and same_s >= self._frozen_after_s else 0.0
