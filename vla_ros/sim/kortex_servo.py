"""High-level servoing of a simulated Gen3: joint speeds, or a twist, within the base's limits become positions that its joints hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_ros.sim.kortex_twist import TwistKinematics
from vla_ros.sim.plant import Plant

_TICK_S = 0.025  # the base takes over high-level commands at this period
# hard limits of the large (joints 1-4) and small actuators
_SPEED_RAD_S = np.radians([79.64] * 4 + [69.91] * 3)
_ACCELERATION_RAD_S2 = np.radians([297.94] * 4 + [572.95] * 3)
# hard limits of twists (Kinova, Kinovarobotics/Kinova-kortex2_Gen3_G3L issue 14)
_TCP_M_S, _TCP_RAD_S = 0.5, np.radians(100.0)


@dataclass(frozen=True)
class Command:
    """`values`: joint speeds [N] rad/s, or a twist [6] (m/s, rad/s, axes of the base)."""

    values: np.ndarray
    twist: bool = False


class JointServo:
    """A speed or twist goes on until the next one. Commands come from any thread, `step` from the physics'.

    Args:
        alive: whether the client that moves the arm still gives signs of life; without them the arm stops.
    """

    def __init__(self, plant: Plant, alive: Callable[[], bool]) -> None:
        self._plant, self._alive = plant, alive
        robot = plant.robot
        endless = np.array(robot.position_max_rad) - np.array(robot.position_min_rad) > 2 * np.pi
        self._low = np.where(endless, -np.inf, robot.position_min_rad)
        self._high = np.where(endless, np.inf, robot.position_max_rad)
        self._kinematics = TwistKinematics(robot, self._low, self._high)
        self._standing = Command(np.zeros(len(robot.joints)))
        self._asked = self._goal = self._standing
        self._speed = self._standing.values
        self._reference = plant.measure().position
        self._tick_s = 0.0

    @property
    def asked(self) -> bool:
        """Whether the last command was one to move."""
        return bool(self._asked.values.any())

    @property
    def moving(self) -> bool:
        return bool(self._goal.values.any() or self._speed.any())

    def move(self, speed_rad_s: np.ndarray) -> None:
        """From the next tick on, goes with these speeds [N]."""
        self._asked = Command(np.clip(speed_rad_s, -_SPEED_RAD_S, _SPEED_RAD_S))

    def move_tcp(self, twist: np.ndarray) -> None:
        """From the next tick on, moves the TCP with this twist [6]."""
        too_fast = max(1.0, np.linalg.norm(twist[:3]) / _TCP_M_S, np.linalg.norm(twist[3:]) / _TCP_RAD_S)
        self._asked = Command(twist / too_fast, twist=True)

    def stop(self) -> None:
        """Brakes at once."""
        self._asked = self._goal = self._standing

    def rest(self) -> None:
        """The arm was put somewhere else: stands there."""
        self._asked = self._goal = self._standing
        self._speed = self._standing.values

    def step(self, dt_s: float) -> None:
        self._tick_s += dt_s
        if self._tick_s >= _TICK_S:
            self._tick_s -= _TICK_S
            if self.asked and not self._alive():
                self._asked = self._standing
            self._goal = self._asked
        goal, speed = self._goal, self._speed
        if not speed.any():
            if not goal.values.any():
                return
            self._reference = self._plant.measure().position  # somebody may have moved the arm since
        most = _ACCELERATION_RAD_S2 * dt_s
        speed = speed + np.clip(self._wanted(goal) - speed, -most, most)
        moved = self._reference + speed * dt_s
        self._reference = np.clip(moved, self._low, self._high)
        self._speed = np.where(moved == self._reference, speed, 0.0)  # a joint at its limit stands
        self._plant.drive(self._reference)

    def _wanted(self, goal: Command) -> np.ndarray:
        """The joint speeds [N] rad/s of a command; those of a twist are slowed down as a whole, so that its direction stays."""
        if not goal.twist:
            return goal.values
        speeds = self._kinematics.speeds(self._reference, goal.values)
        return speeds / max(1.0, float(np.max(np.abs(speeds) / _SPEED_RAD_S)))
