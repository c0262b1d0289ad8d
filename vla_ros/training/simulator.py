"""What training asks of a fast simulator. Training never imports one: the configuration names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_ros.core.devices import load_device
from vla_ros.training.config import TrainingConfig


@dataclass(frozen=True)
class View:
    """One instant: measured TCP `pose` [6], `objects` [5, 3] (m) as in `demonstrations.OBJECTS`.

    `images` are uint8 [H, W, 3] by camera, none where nothing was rendered.
    """

    images: dict[str, np.ndarray]
    pose: np.ndarray
    gripper_width_m: float
    objects: np.ndarray


class Outcome(Protocol):
    """How the task stands."""

    success: bool
    wrong_object: bool


class Simulator(Protocol):
    """One scene, compiled once, stepped at the policy's rate as fast as it goes."""

    def instructions(self, stack: bool) -> list[str]:
        """The canonical tasks of one kind."""

    def reset(self, seed: int, instruction: str, disturb_start: bool = False) -> None:
        """Places everything by `seed`; with `disturb_start` the arm starts a little off its home."""

    def look(self, render: bool = True) -> View:
        """Measures, and renders every camera if asked to."""

    def expert(self, view: View, horizon: int) -> tuple[np.ndarray, int]:
        """What a perfect expert would do from here: targets [horizon, 7] (row k: what to command k steps from now) and the stage."""

    def step(self, pose: np.ndarray, closed: float) -> None:
        """Drives one policy step towards the TCP `pose` [6] and the gripper command."""

    def outcome(self) -> Outcome:
        """Judges the task by physics."""

    def close(self) -> None:
        """Frees the renderer."""


def open_simulator(config: TrainingConfig) -> Simulator:
    """Imports and opens what `data.simulator` names. Raises ConfigError for a wrong import path."""
    return load_device({}, config.data.simulator)(config.cameras, config.image["width"], config.image["height"])
