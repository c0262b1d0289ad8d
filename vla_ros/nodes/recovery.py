"""`Robot.recover` in a thread: it may take seconds, and the executor's thread must go on reading the other signals."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rclpy.executors import Executor
from rclpy.task import Future

from vla_ros.core.errors import DeviceError, VlaError
from vla_ros.core.interfaces import Robot
from vla_ros.nodes.steady_loop import locked

_FIRST_RETRY_NS, _LAST_RETRY_NS = 250_000_000, 2_000_000_000


class Recovery:
    """At most one attempt at a time; `done` is called in the executor's thread, under `lock`, with None or the error.

    `begin` and `keep_trying` are called under `lock`; nobody waits for the future under it.
    """

    def __init__(self, done: Callable[[VlaError | None], None], lock: threading.RLock) -> None:
        self._done, self._lock = done, lock
        self._running: Future | None = None
        self._retry_ns, self._retry_at_ns = _FIRST_RETRY_NS, 0

    def begin(self, robot: Robot, executor: Executor) -> Future:
        """Starts an attempt, or joins the one that runs; the future holds None or the error."""
        if self._running is None:
            future = self._running = Future(executor=executor)
            future.add_done_callback(self.end)
            threading.Thread(target=_recover, args=(robot, future), name="recover", daemon=True).start()
        return self._running

    @locked
    def end(self, future: Future) -> None:
        """Takes the outcome in; who waits for the future calls it too, so as not to depend on the order of callbacks."""
        if self._running is future:
            self._running = None
            self._done(future.result())

    def keep_trying(self, lost: bool, robot: Robot, executor: Executor, steady_ns: int) -> None:
        """Call it regularly: while `lost`, attempts are made with growing pauses."""
        if not lost:
            self._retry_ns = _FIRST_RETRY_NS
        elif self._running is None and steady_ns >= self._retry_at_ns:
            self._retry_at_ns = steady_ns + self._retry_ns
            self._retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
            self.begin(robot, executor)


def _recover(robot: Robot, future: Future) -> None:
    outcome: VlaError | None = DeviceError("recovery failed in an unexpected way, see the log", "fault")
    try:
        robot.recover()
        outcome = None
    except VlaError as error:
        outcome = error
    finally:
        future.set_result(outcome)
