"""A PiPer's stop in virtual time: the driver's part, the arm's controller and its lag, with all delays that there are between them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import Action
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.piper_braking import ACCELERATION_RAD_S2, standing_point
from vla_ros.robots.tracking import PositionReference
from vla_ros.sim import piper_frames as frames
from vla_ros.sim.piper_controller import PiperController
from vla_ros.sim.plant import KinematicPlant

ROBOT = load_embodiment("piper").robots["arm"]
HOME = np.array(ROBOT.home_rad)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)
STEP_S, PERIOD_S = 0.002, 0.02
FEEDBACK_S, UP_S, DOWN_S = 0.006, 0.004, 0.002  # period of the feedback, its way to the driver, a command's way to the arm
REST_RAD_S, AGAIN_RAD_S = 0.02, 0.05
SPEEDS = (0.1, 0.2, 0.4, 0.6, 0.8)


@dataclass
class Arm:
    """Joint 1 at a speed (rad/s), stopped after `follow`, `follow` ... ; `log` has its measured position and speed since then."""

    lag_s: float

    def __post_init__(self) -> None:
        self.plant = KinematicPlant(ROBOT, self.lag_s)
        self._controller = PiperController(self.plant)
        self._controller.obey(frames.ENABLE, bytes([7, 2, 0, 0, 0, 0, 0, 0]))
        self._reference = PositionReference(ROBOT, Kinematics(ROBOT), 8.0, 0.3)
        self._sent: list[tuple[float, np.ndarray]] = []
        self._waiting: list[tuple[float, np.ndarray]] = []
        self._feedback: list[tuple[float, np.ndarray, np.ndarray]] = [(-1.0, HOME, np.zeros(6))]
        self._steps = 0
        self.log: list[tuple[float, float, float]] = []

    @property
    def now_s(self) -> float:
        return self._steps * STEP_S

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        return next((q, v) for at_s, q, v in reversed(self._feedback) if at_s + UP_S <= self.now_s + 1e-9)

    def follow(self, speed: float, for_s: float) -> None:
        for step in range(round(for_s / STEP_S)):
            if step % round(PERIOD_S / STEP_S) == 0:
                stamp_ns = 1 + round(self.now_s * 1e9)
                action = Action(VELOCITIES, [speed, 0, 0, 0, 0, 0], stamp_ns)
                self._send(self._reference.follow(action, self.sample()[0], stamp_ns)[0])
            self.step()

    def stop(self) -> None:
        self._send(standing_point(*self.sample(), [(self.now_s - sent_s, target) for sent_s, target in self._sent]))
        begun_s = self.now_s
        for _ in range(250):
            self.step()
            measured = self.plant.measure()
            self.log.append((self.now_s - begun_s, measured.position[0], measured.velocity[0]))

    def _send(self, target: np.ndarray) -> None:
        self._sent = [*self._sent[-3:], (self.now_s, target)]
        self._waiting.append((self.now_s + DOWN_S, target))

    def step(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.now_s + 1e-9:
            millidegrees = np.rint(np.degrees(self._waiting.pop(0)[1]) * 1e3).astype(int).tolist()
            self._controller.obey(frames.MODE, bytes([1, 1, 100, 0, 0, 0, 0, 0]))
            for i in range(3):
                self._controller.obey(frames.JOINTS_12 + i, struct.pack(">2i", *millidegrees[2 * i : 2 * i + 2]))
        self._controller.step(STEP_S)
        self.plant.step(STEP_S)
        self._steps += 1
        if self._steps % round(FEEDBACK_S / STEP_S) == 0:
            self._feedback.append((self.now_s, self.plant.measure().position, self.plant.measure().velocity))


def rest_s(log: np.ndarray) -> float:
    """When the arm last moved."""
    return log[np.abs(log[:, 2]) > REST_RAD_S, 0].max(initial=0.0)


@pytest.mark.parametrize("late_s", [0.0, 0.006, 0.012, 0.018])
@pytest.mark.parametrize("lag_s", [0.01, 0.02])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_moving_arm_comes_to_rest_once_as_fast_as_it_can(speed, direction, lag_s, late_s):
    arm = Arm(lag_s)
    arm.follow(direction * speed, 0.5)
    arm.follow(direction * speed, late_s)
    arm.stop()
    log = np.array(arm.log)
    velocity = direction * log[:, 2]
    assert velocity.min() > -AGAIN_RAD_S, "turned back"
    resting = np.flatnonzero(velocity < REST_RAD_S)[0]
    assert velocity[resting:].max() < AGAIN_RAD_S, "moved again"
    assert rest_s(log) < speed / ACCELERATION_RAD_S2 + 3 * lag_s + 0.02
    assert np.ptp(log[-100:, 1]) < 1e-3


@pytest.mark.parametrize("turned_s", [0.002, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3])
@pytest.mark.parametrize("lag_s", [0.01, 0.02])
@pytest.mark.parametrize("speed", SPEEDS)
def test_an_arm_that_turns_back_stops_turning(speed, lag_s, turned_s):
    """In any phase of a reversal: once its speed has fallen, no joint sets off again in either direction."""
    arm = Arm(lag_s)
    arm.follow(speed, 0.5)
    arm.follow(-speed, turned_s)
    arm.stop()
    log = np.array(arm.log)
    # the measured speed is late: what it has before the stop can have reached it is the turn itself
    after = np.abs(log[log[:, 0] > DOWN_S + 2 * lag_s, 2])
    rising = np.maximum.accumulate(after[::-1])[::-1] - after
    assert rising.max() < AGAIN_RAD_S, "moved again"
    assert np.ptp(log[-100:, 1]) < 1e-3


def test_a_standing_arm_is_not_brought_down_step_by_step():
    """Its drives give way by 3 mrad: told to hold where it is measured, it would give way again."""
    target = HOME
    for _ in range(50):
        target = standing_point(target - 0.003, np.zeros(6), [(0.1, target)])
    np.testing.assert_allclose(target, HOME, atol=5e-4)


def test_an_arm_far_behind_its_target_stops_where_it_is():
    np.testing.assert_allclose(standing_point(HOME, np.zeros(6), [(1.0, HOME + 0.3)]), HOME, atol=0.006)
