"""A simulated arm as its own firmware sees it, and what such a firmware must do.

A rig's driver talks over its real protocol to a `Firmware`, which runs in the simulation's process in the place of the control box, the CAN
nodes or the servos. The firmware moves a `Plant`: joints under stiff position servos and a gripper with a force.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_ros.core.embodiment import RobotDescription


@dataclass(frozen=True)
class Measurement:
    """`position` [N] rad, `velocity` [N] rad/s, `effort` [N] N m in the order of the arm's joints; the gripper's opening and its force."""

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    gripper_width_m: float
    gripper_force_n: float = 0.0


class Plant(Protocol):
    """One arm with its gripper. Any thread may call it: every method only swaps a reference."""

    robot: RobotDescription

    def measure(self) -> Measurement:
        """Returns the newest measurement."""

    def drive(self, position_rad: np.ndarray) -> None:
        """Sets the targets [N] rad of the joints' servos; they hold them until told otherwise."""

    def grip(self, width_m: float, force_n: float) -> None:
        """Closes or opens towards a width with at most this force."""

    def power(self, on: bool) -> None:
        """Off: the joints give way; on again: they hold where they are."""


class Firmware(Protocol):
    """The device's end of a protocol, in front of one plant. `firmware(plant, options, **rest)`: `options` are the rig's for the driver.

    `FAULTS` are the names that `inject` takes: what can go wrong with the device or its link.
    """

    FAULTS: tuple[str, ...]

    def __init__(self, plant: Plant, options: Mapping[str, object]) -> None: ...

    def start(self) -> None:
        """Opens its ports and threads. Raises DeviceError when an address is taken."""

    def step(self, dt_s: float) -> None:
        """Called by the physics every `dt_s` of simulated time: what the controller's own loop does (interpolation, its own watchdog)."""

    def rest(self) -> None:
        """Somebody else moved the arm (a simulator's reset): forget every target and hold where it is now."""

    def inject(self, fault: str) -> None:
        """Makes something go wrong, until `clear`."""

    def clear(self) -> None:
        """Ends all injected faults; what the device latches (an emergency stop, an error) it keeps until its protocol resets it."""

    def close(self) -> None:
        """Closes ports and threads. Idempotent."""


class KinematicPlant:
    """A plant without physics: joints follow their targets with a lag and a top speed. For tests of drivers and firmware.

    Args:
        robot: joints, limits, home (where it starts).
        lag_s: time constant of the servos.
    """

    def __init__(self, robot: RobotDescription, lag_s: float = 0.01) -> None:
        self.robot = robot
        self._lag_s = lag_s
        self._speed = np.array(robot.velocity_max_rad_s) * 1.5
        self._position = np.array(robot.home_rad, dtype=np.float64)
        self._target: np.ndarray | None = self._position
        self._width_m = robot.gripper.width_max_m if robot.gripper else 0.0
        self._grip = self._width_m, 0.0
        self._look(np.zeros_like(self._position))

    def measure(self) -> Measurement:
        return self._measured

    def drive(self, position_rad: np.ndarray) -> None:
        if self._target is not None:
            self._target = np.array(position_rad, dtype=np.float64)

    def grip(self, width_m: float, force_n: float) -> None:
        self._grip = width_m, force_n

    def power(self, on: bool) -> None:
        self._target = self._position if on else None

    def place(self, position_rad: np.ndarray) -> None:
        """Puts the joints [N] rad elsewhere, at rest, as a simulator's reset does; call the firmware's `rest` next."""
        self._position = np.array(position_rad, dtype=np.float64)
        if self._target is not None:
            self._target = self._position
        self._look(np.zeros_like(self._position))

    def step(self, dt_s: float) -> None:
        """Lets time pass."""
        target = self._target
        velocity = np.zeros_like(self._position)
        if target is not None:
            velocity = np.clip((target - self._position) / max(self._lag_s, dt_s), -self._speed, self._speed)
        self._position = self._position + velocity * dt_s
        width_m, _ = self._grip
        self._width_m += float(np.clip(width_m - self._width_m, -0.1 * dt_s, 0.1 * dt_s))
        self._look(velocity)

    def _look(self, velocity: np.ndarray) -> None:
        effort = np.zeros_like(velocity)
        self._measured = Measurement(time.time_ns(), self._position, velocity, effort, self._width_m, self._grip[1])
