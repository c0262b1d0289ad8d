"""Figures of a rollout: samples go in as they happen, percentiles come out at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from vla_ros.core.executors import Figures


def percentiles(values: Iterable[float], *names: str) -> dict[str, float | None]:
    """Returns {"p50": ..., "p99": ..., "max": ...}, or the `names` asked for ("p<percent>", "max", "mean"); without values each is None."""
    array = np.asarray(list(values), dtype=np.float64)
    names = names or ("p50", "p99", "max")
    if not array.size:
        return dict.fromkeys(names)
    special = {"max": np.max, "mean": np.mean}
    values = {name: special[name](array) if name in special else np.percentile(array, float(name[1:])) for name in names}
    return {name: float(f"{value:.6g}") for name, value in values.items()}  # more digits than were measured help nobody


class RolloutStatistics:
    """Counts and samples of one rollout; `summary` has the keys of `vla demo --json`.

    `holds` are {"reason", "t_s", "duration_s"}; `rejected` counts by name.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.inference_ms: list[float] = []
        self.observation_age_ms: list[float] = []
        self.tick_late_ms: list[float] = []
        self.boundary_jump_rad: list[float] = []
        self.boundary_jump_m: list[float] = []
        self.prediction_age_ms: list[float] = []
        self.holds: list[dict[str, object]] = []
        self.rejected: Counter[str] = Counter()
        self._hand_overs = 0

    def add_chunk(self, inference_s: float, observation_age_s: float) -> None:
        """A chunk became usable: wall time of `infer`, and age of its observation at that moment."""
        self.chunks += 1
        self.inference_ms.append(inference_s * 1e3)
        self.observation_age_ms.append(observation_age_s * 1e3)

    def add_tick(self, late_s: float, figures: Figures) -> None:
        """The control timer asked the executor: how late the timer was, and the figures after it. Each hand-over is taken once."""
        self.tick_late_ms.append(late_s * 1e3)
        if figures.live and figures.prediction_age_s is not None:
            self.prediction_age_ms.append(figures.prediction_age_s * 1e3)
        if figures.hand_overs == self._hand_overs:
            return
        self._hand_overs = figures.hand_overs
        if figures.boundary_jump_rad is not None:
            self.boundary_jump_rad.append(figures.boundary_jump_rad)
        if figures.boundary_jump_m is not None:
            self.boundary_jump_m.append(figures.boundary_jump_m)

    def summary(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "chunks": self.chunks,
            "inference_ms": percentiles(self.inference_ms, "p50", "p99"),
            "observation_age_ms": percentiles(self.observation_age_ms, "p50", "p99"),
            "tick_late_ms": percentiles(self.tick_late_ms, "p50", "p99", "max"),
            "boundary_jump_rad": percentiles(self.boundary_jump_rad, "p50", "p99"),
            "boundary_jump_m": percentiles(self.boundary_jump_m, "p50", "p99"),
            "prediction_age_ms": percentiles(self.prediction_age_ms, "p50", "p99"),
            "holds": list(self.holds),
            "rejected": dict(self.rejected),
        }
