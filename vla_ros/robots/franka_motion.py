"""What moves a Franka: joint velocities, or impedance (a spring from the arm to a moving reference), each as one stream of targets.

franky takes a new target of a running stream in 0.2 ms, but starting one, changing its kind (the arm must stand: 0.4 s) or using a
link that has just died takes up to 1 s. So the newest target is carried out in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import ConfigError
from vla_ros.robots.franka_sdk import FRANKY_ERRORS, LINK_ERRORS, fault_of, franky

CONTROLS = ("joint_velocity", "joint_impedance", "cartesian_impedance")
_STANDS_WITHIN_S = 3.0
_POLL_S = 0.002
_STOPS = {
    franky.ControlSignalType.JointVelocities: franky.JointVelocityStopMotion,
    franky.ControlSignalType.JointPositions: franky.JointStopMotion,
    franky.ControlSignalType.CartesianVelocities: franky.CartesianVelocityStopMotion,
    franky.ControlSignalType.CartesianPose: franky.CartesianStopMotion,
    franky.ControlSignalType.Torques: franky.TorqueStopMotion,
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stiffness:
    """Springs with critical damping: in each joint [7] for joint_impedance, else at the TCP along the axes of the base.

    `posture_nm_rad` pulls the elbow to `home_rad` [7] in the null space of the spring at the TCP.
    """

    home_rad: tuple[float, ...]
    joints_nm_rad: tuple[float, ...] = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
    translation_n_m: float = 600.0
    rotation_nm_rad: float = 40.0
    posture_nm_rad: float = 10.0

    def __post_init__(self) -> None:
        if len(self.joints_nm_rad) != len(self.home_rad):
            raise ConfigError(f"stiffness.joints_nm_rad: {len(self.joints_nm_rad)} values, expected {len(self.home_rad)} (one a joint)")
        for name in ("joints_nm_rad", "translation_n_m", "rotation_nm_rad", "posture_nm_rad"):
            if np.min(getattr(self, name)) < 0:
                raise ConfigError(f"stiffness.{name} = {getattr(self, name)}, expected >= 0")


@dataclass(frozen=True)
class Target:
    """Where to go now: `velocity` [7] rad/s for all; impedance also needs `position` [7] rad or `pose` [4, 4] with `twist` [6]."""

    control: str
    velocity: np.ndarray
    position: np.ndarray | None = None
    pose: np.ndarray | None = None
    twist: np.ndarray | None = None


class FrankaMotion:
    """Streams the newest target. `fault` is libfranka's sentence once a motion failed; nothing moves until `clear`.

    Args:
        robot: connected. address: for messages.
        hold_after_s: a motion that gets no new target for so long ends.
    """

    def __init__(self, robot: franky.Robot, address: str, hold_after_s: float, stiffness: Stiffness) -> None:
        self.fault = ""
        self.dead = ""
        self._robot, self._address = robot, address
        self._hold_after_s, self._stiffness = hold_after_s, stiffness
        self._spring: tuple[str, franky.JointImpedanceTrackingMotion | franky.CartesianImpedanceTrackingMotion] | None = None
        self._new = threading.Condition()
        self._newest: Target | str = ""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"franka motion {address}", daemon=True)
        self._thread.start()

    @property
    def moving(self) -> bool:
        """Whether a motion runs or is about to (also, for up to 1 s, on a link that just died)."""
        return bool(self._newest) or self._robot.is_in_control

    def runs(self, control: str) -> bool:
        """Whether a motion of this kind runs."""
        return self._signal() is not None and (self._spring[0] if self._spring else "joint_velocity") == control

    def go(self, target: Target) -> None:
        """Replaces the target. Does not block."""
        self._tell(target)

    def halt(self) -> None:
        """Brakes within the joints' limits; the control box then holds. Does not block."""
        self._tell("halt")

    def failed(self, error: Exception) -> None:
        """Keeps what ended a motion."""
        sentence = str(error).replace("\n", "; ")
        if isinstance(error, franky.ControlException) and (shown := fault_of(self._robot.state)):
            sentence = f"{shown}; {sentence}"
        self.fault = self.fault or sentence  # the first one is the cause
        if isinstance(error, LINK_ERRORS):
            self.dead = sentence
        _log.error("franka at %s: %s", self._address, sentence)

    def clear(self) -> None:
        """Forgets the fault and every target from before."""
        with self._new:
            self._newest, self._spring, self.fault = "", None, ""

    def close(self) -> None:
        """Ends the thread, not the motion; the thread lets the robot go. Idempotent."""
        self._closing = True
        self._tell("")
        self._thread.join(1.5)

    def _tell(self, newest: Target | str) -> None:
        with self._new:
            self._newest = newest
            self._new.notify()

    def _work(self) -> None:
        while not self._closing:
            with self._new:
                # only a spring needs to be ended here: velocities end by themselves
                come = self._new.wait_for(lambda: self._newest or self._closing, self._hold_after_s if self._spring else None)
                target = self._newest if come else "halt"
            if self._closing:
                break
            try:
                if not self.fault or (target == "halt" and not self.dead):
                    self._carry_out(target)
            except FRANKY_ERRORS as error:
                self.failed(error)
            with self._new:
                if self._newest is target:
                    self._newest = ""
        self._robot = None

    def _carry_out(self, target: Target | str) -> None:
        if target == "halt":
            self._stop()
        elif target.control == "joint_velocity":
            # franky takes floats only: a list that mixes in an int is a TypeError
            duration = franky.Duration(round(self._hold_after_s * 1e3))
            self._start(franky.JointVelocityMotion([float(v) for v in target.velocity], duration), franky.ControlSignalType.JointVelocities)
            self._spring = None
        else:
            reference = _reference(target)
            torques = franky.ControlSignalType.Torques
            if self._spring and self._spring[0] == target.control and self._signal() == torques:
                self._spring[1].set_reference(reference)
                return
            spring = self._new_spring(target.control)
            spring.set_reference(reference)
            if self._start(spring, torques):
                self._spring = target.control, spring

    def _new_spring(self, control: str) -> franky.JointImpedanceTrackingMotion | franky.CartesianImpedanceTrackingMotion:
        stiffness = self._stiffness
        if control == "joint_impedance":
            return franky.JointImpedanceTrackingMotion(stiffness=np.array(stiffness.joints_nm_rad, dtype=float))
        posture = franky.PostureTask(np.array(stiffness.home_rad), stiffness.posture_nm_rad)
        return franky.CartesianImpedanceTrackingMotion(stiffness.translation_n_m, stiffness.rotation_nm_rad, posture_task=posture)

    def _signal(self) -> franky.ControlSignalType | None:
        return self._robot.current_control_signal_type if self._robot.is_in_control else None

    def _start(self, motion: object, signal: franky.ControlSignalType) -> bool:
        """Starts a motion, or lets it take over a running one of its kind. False: the arm had to stop first, and the target is old."""
        running = self._signal()
        if running in (None, signal):
            self._robot.move(motion, asynchronous=True)
            return True
        self._stop()
        deadline_s = time.monotonic() + _STANDS_WITHIN_S
        while self._robot.is_in_control and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return False

    def _stop(self) -> None:
        self._spring = None
        running = self._signal()
        if running is not None:
            self._robot.move(_STOPS[running](), asynchronous=True)


def _reference(target: Target) -> franky.JointReference | franky.CartesianReference:
    if target.control == "joint_impedance":
        return franky.JointReference(target.position, target.velocity)
    twist = franky.Twist(np.array(target.twist[:3]), np.array(target.twist[3:]))
    return franky.CartesianReference(franky.Affine(target.pose), twist)
