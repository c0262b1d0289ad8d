"""What is done to an expert's commands so that demonstrations also show how to recover."""

from __future__ import annotations

import numpy as np

from vla_ros.policies.poses import absolute_poses
from vla_ros.training.config import Noise
from vla_ros.training.demonstrations import HELD

YAW_MOSTLY = np.array([0.3, 0.3, 1.0])


class Disturbance:
    """Disturbs the commands of one episode.

    The labels stay clean: at every visited state the expert says what is right from there.

    Args:
        noise: how much.
        rng: the episode's own generator.
    """

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._noise, self._rng = noise, rng
        # A rig acts on a picture that is already old: row d of the chunk from d steps ago.
        self._delay = int(rng.integers(0, noise.delay_steps + 1))
        self._chunks: list[np.ndarray] = []
        self._gripper_delay = int(rng.integers(0, noise.gripper_delay_steps + 1))
        self._closed_history: list[float] = []
        self._burst_left, self._burst_m = 0, np.zeros(3)
        self._flip_left, self._release_left = 0, 0
        self._drop_after = int(rng.integers(2, 15)) if rng.random() < noise.drop_share else -1

    def command(self, targets: np.ndarray, stage: int) -> tuple[np.ndarray, float]:
        """Returns the pose [6] and gripper (closed 0/1) to execute for the next step.

        Args:
            targets: [T, 7] the expert's clean chunk from the present state.
            stage: BEFORE_GRASP, HELD or PLACED.
        """
        noise, rng = self._noise, self._rng
        self._chunks = [*self._chunks[-self._delay :], targets] if self._delay else [targets]
        age = len(self._chunks) - 1
        row = self._chunks[0][age]
        motion = np.zeros((1, 6))
        motion[0, :3] += rng.normal(size=3) * noise.jitter_m + self._burst()
        motion[0, 3:] += rng.normal(size=3) * noise.jitter_rad * YAW_MOSTLY
        pose = absolute_poses(motion, row[:6])[0]
        return pose, self._gripper(float(row[6]), stage)

    def _burst(self) -> np.ndarray:
        if self._burst_left == 0 and self._rng.random() < self._noise.burst_probability:
            self._burst_left = int(self._rng.integers(1, 4))
            self._burst_m = self._rng.normal(size=3) * self._noise.burst_m
        if self._burst_left > 0:
            self._burst_left -= 1
            return self._burst_m
        return np.zeros(3)

    def _gripper(self, closed: float, stage: int) -> float:
        self._closed_history.append(closed)
        closed = self._closed_history[max(0, len(self._closed_history) - 1 - self._gripper_delay)]
        if stage == HELD and self._drop_after >= 0:
            self._drop_after -= 1
            if self._drop_after < 0:
                self._release_left = 5
        if self._release_left > 0:
            self._release_left -= 1
            return 0.0
        if self._flip_left == 0 and self._rng.random() < self._noise.flip_probability:
            self._flip_left = int(self._rng.integers(1, 4))
        if self._flip_left > 0:
            self._flip_left -= 1
            return 1.0 - closed
        return closed
