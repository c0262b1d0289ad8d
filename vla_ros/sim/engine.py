"""What the real-time loop asks of a simulated robot, whatever its physics and its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import mujoco

from vla_ros.sim.layout import ArmNames


class Engine(Protocol):
    """Physics with the robot's control boxes in front of it. One thread steps it.

    `model`, `data` are there from `start` on and others after `furnish`; `step_s` is simulated time per step; `arms` names the arms' parts
    in the model.
    """

    step_s: float
    arms: Mapping[str, ArmNames]
    model: mujoco.MjModel
    data: mujoco.MjData

    def start(self) -> None:
        """Compiles the scene and opens the ports. Raises DeviceError: an address is taken or not of this machine."""

    def step(self) -> None:
        """Lets `step_s` pass."""

    def furnish(self, drawer: bool) -> None:
        """Makes the scene with or without a drawer the one that is played. Only a table that has one (`Layout.kinds`) is asked for it."""

    def rest(self, widths_m: Mapping[str, float]) -> None:
        """The arms were put somewhere else: their controllers hold them there, with the grippers open so far."""

    def commanded_rad_s(self) -> float:
        """The joint speed (norm over all arms) that the controllers ask for."""

    def close(self) -> None:
        """Closes the ports. Idempotent."""
