"""1 % / 99 % quantile statistics that map to [-1, 1]; they travel inside the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import PolicyError


@dataclass(frozen=True)
class Quantiles:
    """`low` and `high`, one shape: [T, D] for chunks (every row has its own, far rows move farther) or [D] for the state."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def measure(cls, samples: np.ndarray, smallest_range: np.ndarray) -> Quantiles:
        """Returns the statistics of `samples` [N, ...].

        Args:
            smallest_range: the least `high - low` of each last-axis entry, so that a value which hardly varies is not blown up to noise.
        """
        low, high = np.quantile(samples, [0.01, 0.99], axis=0)
        widen = np.maximum(smallest_range - (high - low), 0) / 2
        return cls(low - widen, high + widen)

    @classmethod
    def from_json(cls, value: object, shape: tuple[int, ...], owner: str) -> Quantiles:
        """Reads `{"low": ..., "high": ...}`. Raises PolicyError that names `owner` when it is missing, misshapen or reversed."""
        if not isinstance(value, dict) or set(value) != {"low", "high"}:
            raise PolicyError(f"{owner}: no statistics (found {value!r:.80}); the policy cannot be un-normalised: train it again")
        try:
            low, high = (np.asarray(value[key], dtype=np.float64) for key in ("low", "high"))
        except (TypeError, ValueError) as error:
            raise PolicyError(f"{owner}: statistics are not arrays of numbers ({error}): restore config.json") from None
        for key, array in (("low", low), ("high", high)):
            if array.shape != shape or not np.isfinite(array).all():
                raise PolicyError(
                    f"{owner}.{key}: shape {array.shape} (finite: {np.isfinite(array).all()}), expected finite {shape}: restore config.json"
                )
        if not (high > low).all():
            raise PolicyError(f"{owner}: high <= low in {np.count_nonzero(high <= low)} of {low.size} entries: restore config.json")
        return cls(low, high)

    def to_json(self) -> dict[str, list]:
        return {"low": np.round(self.low, 7).tolist(), "high": np.round(self.high, 7).tolist()}

    def normalize(self, value: np.ndarray, clip: bool = True) -> np.ndarray:
        """Maps [low, high] to [-1, 1]; values beyond are clipped to it unless `clip` is False."""
        scaled = 2 * (value - self.low) / (self.high - self.low) - 1
        return np.clip(scaled, -1, 1) if clip else scaled

    def unnormalize(self, value: np.ndarray) -> np.ndarray:
        """The inverse; input beyond [-1, 1] is clipped, so a policy never asks for more than its data showed."""
        return self.low + (np.clip(value, -1, 1) + 1) / 2 * (self.high - self.low)
