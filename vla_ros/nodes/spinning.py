"""An executor in a thread of its own, which always ends when it is told to."""

from __future__ import annotations

import threading

from rclpy.executors import Executor, ExternalShutdownException
from rclpy.task import Future


class Spinning:
    """Spins `executor` in a daemon thread until `close`. What a callback raises ends it; `check` raises it to its caller.

    `Executor.shutdown` of another thread will not do: rclpy destroys the guard condition that it has just triggered, and a thread between
    its last look at the flag and its wait set then waits for ever. A future that is done wakes it and leaves the guard where it is.
    """

    def __init__(self, executor: Executor, name: str) -> None:
        self._executor = executor
        self._closed: Future[None] = Future()
        self._crash: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the last callback is over. Call it without a lock that a callback takes. Idempotent."""
        self._closed.set_result(None)
        self._thread.join()
        self._executor.shutdown()

    def check(self) -> None:
        if self._crash is not None:
            raise self._crash

    def _run(self) -> None:
        try:
            self._executor.spin_until_future_complete(self._closed)
        except ExternalShutdownException:
            return  # Ctrl-C: its node ends too
        except Exception as error:
            self._crash = error
