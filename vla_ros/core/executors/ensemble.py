"""Temporal ensembling: the weighted mean of what all live chunks say about an instant."""

from __future__ import annotations

import numpy as np

from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.executors.base import Executor
from vla_ros.core.executors.timeline import Samples

# What `m` is when it is not given: per prediction for "act" (the ACT paper's), per second for "age".
DEFAULT_M = {"act": 0.01, "age": 5.0, "adaptive": 0.0}


class EnsembleExecutor(Executor):
    """Weights, normalised over the n predictions that are live at the instant:

    "act": w_i = exp(-m i), i = 0 the **oldest** (ACT, arXiv:2304.13705; favours old predictions: smooth, slow to react);
    "age": w_i = exp(-m age_i) with the age of the observation in s, m in 1/s (favours new ones whatever the inference rate);
    "adaptive": w_i = exp(alpha cos(a_i, a_newest)) over all channels (CogACT, arXiv:2411.19650; drops other modes).

    Args:
        weighting: "act", "age" or "adaptive".
        m: decay of "act" (default 0.01) or of "age" (default 5 1/s), >= 0.
        alpha: sharpness of "adaptive".
        max_age_s: predictions from older observations are left out while a younger one is live; None keeps all.

    Raises:
        ConfigError: unknown weighting, or a value out of range.
    """

    def __init__(self, weighting: str = "act", m: float | None = None, alpha: float = 0.1, max_age_s: float | None = None) -> None:
        if not isinstance(weighting, str) or weighting not in DEFAULT_M:
            raise ConfigError(f"executor ensemble: weighting '{weighting}' is unknown; {did_you_mean(str(weighting), DEFAULT_M)}")
        self.weighting = weighting
        self.m = DEFAULT_M[weighting] if m is None else _number("m", m, 0.0)
        self.alpha = _number("alpha", alpha, 0.0)
        self.max_age_s = None if max_age_s is None else _number("max_age_s", max_age_s, 0.0)
        self._act = np.empty((0, 0))
        super().__init__()

    def _choose(self, t_ns: int, live: np.ndarray) -> np.ndarray:
        if self.max_age_s is None:
            return live
        stamps = np.array([self._timeline.chunks[i].chunk.stamp_ns for i in live])
        young = t_ns - stamps <= self.max_age_s * 1e9
        young[-1] = True
        return live[young]

    def _weights(self, samples: Samples) -> np.ndarray:
        count = len(samples.ages_s)
        if self.weighting == "act":
            weights = np.exp(-self.m * np.arange(count))
        elif self.weighting == "age":
            # from the newest on, so that old chunks cannot all underflow to 0
            weights = np.exp(-self.m * (samples.ages_s - samples.ages_s[-1]))
        else:
            weights = np.exp(self.alpha * self._similarity(samples))
        return weights / weights.sum()

    def _similarity(self, samples: Samples) -> np.ndarray:
        """Cosine [n] between each prediction and the newest one, all channels as one vector; 0 where a vector is zero."""
        values = self._timeline.rotvecs(samples, samples.values[-1])
        lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
        scale = lengths * lengths[-1]
        return np.divide(values @ values[-1], scale, out=np.zeros_like(scale), where=scale > 0)


def _number(name: str, value: object, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ConfigError(f"executor ensemble: {name} = {value!r}, expected a number >= {least:g}")
    return float(value)
