"""Runs MoL-MSM VLA: a network policy whose memory comes with the checkpoint and may grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.core.types import Observation
from vla_ros.policies.network_policy import NetworkPolicy


class MolMsmPolicy(NetworkPolicy):
    """See `NetworkPolicy`. What is remembered while it runs is kept only by `save_memory`."""

    @classmethod
    def load(cls, folder: Path, embodiment: Embodiment) -> MolMsmPolicy:
        """Loads a checkpoint with its memory. Raises PolicyError also when that is missing, empty, broken or of another checkpoint."""
        policy = super().load(folder, embodiment)
        policy._network.load_memory(folder)
        return policy

    @torch.no_grad()
    def remember(self, observations: list[Observation], commands: np.ndarray) -> None:
        """Adds a rollout that succeeded to the memory.

        Args:
            observations: one every `dt_s`, at least one.
            commands: [N, D] absolute targets, row i executed from observation i on; the last one holds beyond the end.

        Raises:
            PolicyError: the checkpoint does without a memory, or an observation or the commands do not fit.
        """
        shape = (len(observations), len(self.spec.channels))
        if not observations or np.shape(commands) != shape or not np.isfinite(commands).all():
            raise PolicyError(f"{self.spec.name}: commands {np.shape(commands)} to remember, expected finite {shape}, at least one row")
        inputs, states = self.inputs(observations)
        rows = np.minimum(np.arange(len(commands))[:, None] + np.arange(self.spec.horizon), len(commands) - 1)
        chunks = self._action.normalize(self._layout.relative(commands[rows], states))
        self._network.remember(inputs, torch.from_numpy(chunks).float())

    def save_memory(self, folder: Path) -> None:
        """Writes the memory into a checkpoint's folder. Raises PolicyError when it is empty."""
        self._network.save_memory(folder)
