"""A step at a steady rate in a thread of its own, beside the executor's.

It is cheaper than a timer, for which rclpy's executor puts all entities of the node into a new wait set, twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps


def locked(method: Callable) -> Callable:
    """The method under its object's `_lock`, a threading.RLock: for what both threads call."""

    @wraps(method)
    def alone(self, *args):
        with self._lock:
            return method(self, *args)

    return alone


class SteadyLoop:
    """Calls `step` every `period_s` on absolute deadlines; those that a slow step misses are skipped. May be started again after `stop`.

    What the step raises ends the loop; `check` raises it in the thread that owns it.
    """

    def __init__(self, name: str, period_s: float, step: Callable[[], None]) -> None:
        self._name, self._period_s, self._step = name, period_s, step
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._crash: BaseException | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the last step is over. Call it without a lock that the step takes. Idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raises what ended the loop, nothing while it runs or was stopped."""
        if self._crash is not None:
            raise self._crash

    def _run(self) -> None:
        due_s = time.monotonic() + self._period_s
        try:
            while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
                self._step()
                due_s += self._period_s * (1 + max(0.0, time.monotonic() - due_s) // self._period_s)
        except Exception as error:
            self._crash = error
