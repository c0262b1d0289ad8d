"""What is done to an expert's commands so that demonstrations also show how to recover."""

from __future__ import annotations

import numpy as np

from vla_ros.policies.layout import Arm, Layout
from vla_ros.policies.poses import absolute_poses
from vla_ros.training.config import Noise
from vla_ros.training.demonstrations import HELD

YAW_MOSTLY = np.array([0.3, 0.3, 1.0])
REACH_M = 0.4  # a joint that turns by 0.1 rad moves the hand by about 4 cm


class Disturbance:
    """Disturbs the commands of one episode.

    The labels stay clean: at every visited state the expert says what is right from there.

    Args:
        layout: whose channels the commands have.
        noise: how much.
        rng: the episode's own generator.
    """

    def __init__(self, layout: Layout, noise: Noise, rng: np.random.Generator) -> None:
        # A rig acts on a picture that is already old: row d of the chunk from d steps ago.
        self._delay = int(rng.integers(0, noise.delay_steps + 1))
        self._chunks: list[np.ndarray] = []
        self._arms = [(arm, _Hand(arm, noise, rng), _Fingers(noise, rng)) for arm in layout.arms]

    def command(self, targets: np.ndarray, stage: int) -> np.ndarray:
        """Returns the action [D] to execute for the next step.

        Args:
            targets: [T, D] the expert's clean chunk from the present state.
            stage: BEFORE_GRASP, HELD or PLACED.
        """
        self._chunks = [*self._chunks[-self._delay :], targets] if self._delay else [targets]
        action = self._chunks[0][len(self._chunks) - 1].copy()
        for arm, hand, fingers in self._arms:
            action[arm.columns] = hand.command(action[arm.columns])
            action[arm.gripper] = fingers.command(float(action[arm.gripper]), stage)
        return action


class _Hand:
    """Jitter and bursts of one arm."""

    def __init__(self, arm: Arm, noise: Noise, rng: np.random.Generator) -> None:
        self._arm, self._noise, self._rng = arm, noise, rng
        self._left, self._pull = 0, np.zeros(3 if arm.pose else arm.motion)

    def command(self, target: np.ndarray) -> np.ndarray:
        noise, rng = self._noise, self._rng
        pull = self._burst()
        if not self._arm.pose:
            return target + rng.normal(size=len(target)) * noise.jitter_rad * 0.5 + pull / REACH_M
        turn = rng.normal(size=3) * noise.jitter_rad * YAW_MOSTLY
        return absolute_poses(np.append(rng.normal(size=3) * noise.jitter_m + pull, turn)[None], target)[0]

    def _burst(self) -> np.ndarray:
        if self._left == 0 and self._rng.random() < self._noise.burst_probability:
            self._left = int(self._rng.integers(1, 4))
            self._pull = self._rng.normal(size=len(self._pull)) * self._noise.burst_m
        if self._left > 0:
            self._left -= 1
            return self._pull
        return np.zeros_like(self._pull)


class _Fingers:
    """Late, flipped and dropped gripper commands of one arm."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._noise, self._rng = noise, rng
        self._delay = int(rng.integers(0, noise.gripper_delay_steps + 1))
        self._history: list[float] = []
        self._flip_left, self._release_left = 0, 0
        self._drop_after = int(rng.integers(2, 15)) if rng.random() < noise.drop_share else -1

    def command(self, closed: float, stage: int) -> float:
        self._history.append(closed)
        closed = self._history[max(0, len(self._history) - 1 - self._delay)]
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
