"""A slot for the newest frame between the thread that grabs and the one that reads."""

from __future__ import annotations

import threading

from vla_ros.core.errors import VlaError
from vla_ros.core.types import Frame


class Newest:
    """Holds one frame, or the error that ended the grabbing. Thread-safe."""

    def __init__(self) -> None:
        self._new = threading.Condition()
        self._frame: Frame | None = None
        self._fault: VlaError | None = None

    def put(self, frame: Frame) -> None:
        """Replaces a frame that nobody took."""
        with self._new:
            self._frame = frame
            self._new.notify_all()

    def fail(self, error: VlaError) -> None:
        """From now on `take` raises `error`, after the last frame."""
        with self._new:
            self._fault = error
            self._new.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """Returns the frame once, or None after `timeout_s`. Raises what `fail` was given."""
        with self._new:
            self._new.wait_for(lambda: self._frame is not None or self._fault is not None, timeout=timeout_s)
            frame, self._frame = self._frame, None
            if frame is None and self._fault is not None:
                raise self._fault
            return frame
