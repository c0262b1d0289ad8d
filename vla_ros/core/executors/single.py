"""Executors that follow one chunk at a time."""

from __future__ import annotations

import numpy as np

from vla_ros.core.errors import ConfigError
from vla_ros.core.executors.base import Executor


class FirstExecutor(Executor):
    """The current row of the newest chunk that is live: reacts fastest, and jumps with every chunk."""

    def __init__(self) -> None:
        super().__init__()

    def _choose(self, t_ns: int, live: np.ndarray) -> np.ndarray:
        return live[-1:]


class ChunkExecutor(Executor):
    """Follows a chunk for `execute_steps` rows from the instant it took over, then switches to the newest one that is live.

    The switch is placed on time as everything is: the new chunk goes on at its row for that instant, so that the rows which passed while
    it was inferred are skipped. With no newer chunk the rows that are left are followed, then there is no action.

    Args:
        execute_steps: rows of one chunk to follow before the next, >= 1.

    Raises:
        ConfigError: `execute_steps` is not a whole number >= 1.
    """

    def __init__(self, execute_steps: int = 8) -> None:
        if not isinstance(execute_steps, int) or execute_steps < 1:
            raise ConfigError(f"executor chunk: execute_steps = {execute_steps!r}, expected a whole number >= 1")
        self.execute_steps = execute_steps
        super().__init__()

    def _clear(self) -> None:
        super()._clear()
        self._active = 0
        self._active_order = (-(2**63), 0)
        self._until_ns = 0

    def _choose(self, t_ns: int, live: np.ndarray) -> np.ndarray:
        active = live[self._timeline.numbers[live] == self._active]
        newest = self._timeline.chunks[live[-1]]
        if (len(active) and t_ns < self._until_ns) or newest.order <= self._active_order:
            return active
        self._active, self._active_order = newest.number, newest.order
        self._until_ns = t_ns + round(self.execute_steps * newest.chunk.dt_s * 1e9)
        return live[-1:]
