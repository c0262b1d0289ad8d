"""The loss on held-out episodes: what chooses the best checkpoint where no simulator can tell success."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.func import functional_call

from vla_ros.core.errors import DataError
from vla_ros.policies.network import on_device
from vla_ros.training.config import Augmentation
from vla_ros.training.dataset import Batches, Demonstrations
from vla_ros.training.objective import Average, Objective

CALM = Augmentation(shift_px=0, colour=0.0, word_dropout=0.0, position_noise_m=0.0, rotation_noise_rad=0.0, width_noise_m=0.0)
MOST_SAMPLES = 256  # of each source, evenly spaced


class Validation:
    """Measures always the same samples, with the same sentences and the same noise.

    Args:
        sources: those without held-out episodes are left out.
        batches: makes `Batches` of an augmentation and a seed; a fresh one for each measurement, so that all are alike.
        size: samples at a time.
        seed: of sentences and noise.
    """

    def __init__(self, sources: list[Demonstrations], batches: Callable[[Augmentation, int], Batches], size: int, seed: int) -> None:
        self.sources = [source for source in sources if source.held_out.any()]
        self._batches, self._size, self._seed = batches, size, seed

    @torch.no_grad()
    def loss(self, objective: Objective, average: Average) -> float:
        """Returns the mean loss of the averaged weights, every source counting the same. Raises DataError when it is not finite."""
        training, batches = objective.training, self._batches(CALM, self._seed)
        device = next(objective.parameters()).device
        objective.eval()
        means = []
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            for source in self.sources:
                steps = np.flatnonzero(source.held_out)
                steps = steps[np.linspace(0, len(steps) - 1, min(MOST_SAMPLES, len(steps))).round().astype(int)]
                total = 0.0
                for start in range(0, len(steps), self._size):
                    part = steps[start : start + self._size]
                    total += len(part) * float(
                        functional_call(objective, average.weights, (on_device(batches.of(source, part), device),))[0]
                    )
                means.append(total / len(steps))
        objective.train(training)
        loss = float(np.mean(means))
        if not np.isfinite(loss):
            raise DataError(
                f"the validation loss is {loss}: lower learning_rate or look for outliers in the held-out episodes, then --resume"
            )
        return loss
