"""Real-time chunking (arXiv:2506.07339): what a flow policy needs to continue the chunk that is being executed."""

from __future__ import annotations

import numpy as np

from vla_ros.core.errors import ConfigError, StaleData
from vla_ros.core.executors.single import FirstExecutor
from vla_ros.core.types import Prefix


def prefix_weights(horizon: int, delay_steps: int, execution_horizon: int) -> np.ndarray:
    """Returns the guidance weights [horizon] of RTC's exponential schedule.

    1 for the `delay_steps` rows that are executed while the inference runs; then c (e^c - 1) / (e - 1) with c falling linearly;
    0 from row `execution_horizon` on (named as in LeRobot; in the paper's eq. 5 that row is H - s).
    `prefix_weights(10, 2, 6)` = [1, 1, .5706, .2871, .1145, .0258, 0, 0, 0, 0].
    """
    end = min(execution_horizon, horizon)
    start = min(delay_steps, end)
    row = np.arange(horizon)
    share = np.clip((end - row) / (end - start + 1), 0.0, 1.0)
    weights = share * np.expm1(share) / np.expm1(1.0)
    return np.where(row < start, 1.0, np.where(row < end, weights, 0.0))


class RtcExecutor(FirstExecutor):
    """Executes the newest chunk at its current row, as `first`; smooth because the policy continues `prefix`.

    Args:
        execution_horizon: rows of a new chunk that the old one guides; None: as many as the old one still has.

    Raises:
        ConfigError: `execution_horizon` is not a whole number >= 1.
    """

    def __init__(self, execution_horizon: int | None = None) -> None:
        if execution_horizon is not None and (not isinstance(execution_horizon, int) or execution_horizon < 1):
            raise ConfigError(f"executor rtc: execution_horizon = {execution_horizon!r}, expected a whole number >= 1")
        self.execution_horizon = execution_horizon
        super().__init__()

    def prefix(self, t_ns: int, delay_steps: int) -> Prefix | None:
        """Returns what is committed for a chunk with the stamp `t_ns` (that of its observation), or None when nothing is live then.

        Args:
            t_ns: stamp of the new chunk.
            delay_steps: rows that will be executed until the new chunk is usable (measured without the warm-up inference), >= 0.

        Raises:
            StaleData: the delay is as long as the chunk, so no row of a new chunk would ever be executed.
        """
        with self._lock:
            index = self._chosen(t_ns)
            if not len(index):
                return None
            chunk = self._timeline.chunks[index[0]].chunk
            rows = len(chunk.data)
            if not 0 <= delay_steps < rows:
                raise StaleData(
                    f"rtc: a delay of {delay_steps} rows ({delay_steps * chunk.dt_s:.2f} s) does not fit in a chunk of {rows} rows; "
                    "use a faster policy, a longer horizon or a longer dt_s"
                )
            times = t_ns + np.rint(np.arange(rows) * chunk.dt_s * 1e9).astype(np.int64)
            samples = self._timeline.sample(np.minimum(times, chunk.end_ns), np.repeat(index, rows))
            data = self._timeline.rotvecs(samples, samples.values[0])
        available = int(np.count_nonzero(times <= chunk.end_ns))
        end = available if self.execution_horizon is None else min(self.execution_horizon, available)
        return Prefix(t_ns, chunk.dt_s, chunk.channels, data, prefix_weights(rows, delay_steps, end))
