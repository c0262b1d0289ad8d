"""What training asks of a fast simulator. Training never imports one: the configuration names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_ros.core.devices import load_device


@dataclass(frozen=True)
class View:
    """One instant, in the channels of `policies.layout.layout_for`.

    `state` [S] as measured; `objects` [8, 3] (m, in `base_link`) in the order of `demonstrations.OBJECTS`, NaN for what is not on the
    table in this episode; `images` uint8 [H, W, 3] by camera, none where nothing was rendered. A simulator may add what its expert needs.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    objects: np.ndarray


class Outcome(Protocol):
    """How the task stands: done; a wrong object was moved, ever; it can no longer be done; how many of its steps are done now."""

    success: bool
    wrong_object: bool
    failed: bool
    steps_done: int
    steps: int


class Simulator(Protocol):
    """One table, compiled once, stepped at the policy's rate as fast as it goes."""

    def instructions(self, kind: str) -> list[str]:
        """The canonical tasks of a kind, e.g. "place", "stack", "bimanual", "drawer" or "clear"; none where the table has no such task."""

    def reset(self, seed: int, instruction: str, disturb_start: bool = False) -> None:
        """Places everything by `seed`; with `disturb_start` every arm starts a little off its home."""

    def look(self, render: bool = True) -> View:
        """Measures, and renders every camera if asked to."""

    def expert(self, view: View, horizon: int) -> tuple[np.ndarray, int]:
        """What a perfect expert would do from here.

        Returns:
            Absolute targets [horizon, D], row k is what to command k steps from now; the stage, see `demonstrations`.
        """

    def chain(self) -> tuple[str, ...]:
        """The atomic skills that the task takes, in order, each with what it is about: "pick red block"; the first word is the skill."""

    def skill(self, view: View) -> int:
        """Which skill of `chain` the expert is at, from 0; it goes back when something was lost."""

    def step(self, action: np.ndarray) -> None:
        """Drives one policy step of 0.1 s towards `action` [D]."""

    def outcome(self) -> Outcome:
        """Judges the task by physics."""

    def roles(self, skill: int = 0) -> np.ndarray:
        """What a skill of `chain` is about.

        Returns:
            int [2], indices into `demonstrations.OBJECTS`: what to move and where to, twice the same where the goal is none of them.
        """

    def shift(self, name: str, dx_m: float, dy_m: float) -> None:
        """Moves an object along the table, as somebody might."""

    def close(self) -> None:
        """Frees the renderer."""


def open_simulator(path: str, embodiment: str, cameras: Sequence[str], width: int, height: int) -> Simulator:
    """Imports and opens the simulator at an import path.

    Args:
        path: "package.module:Class", called with the rest.
        embodiment: name of the robot at the table.
        cameras: views to render.
        width, height: what a policy sees (px).

    Raises:
        ConfigError: a wrong import path, or a table or camera that the simulator does not have.
    """
    return load_device({}, path)(embodiment, cameras, width, height)
