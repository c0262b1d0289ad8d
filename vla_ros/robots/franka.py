"""Franka Research 3 with the Franka Hand, through franky (libfranka). The same file drives the robot and franky-sim.

Every target becomes a joint velocity (`tracking.Tracker`), or with `control: joint_impedance | cartesian_impedance` the reference of a
spring. Both end by themselves after `hold_after_s` without a new target, and the control box stops an arm whose computer died.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, StaleData, VlaError, did_you_mean
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.franka_gripper import FrankaGripper, Grasp
from vla_ros.robots.franka_link import FrankaLink, Sample
from vla_ros.robots.franka_motion import CONTROLS, Stiffness, Target
from vla_ros.robots.kinematics import Kinematics, pose_error
from vla_ros.robots.tracking import PositionReference, Tracker

# franky raises RuntimeError above 2.175 (joints 1-4) and 2.61 (joints 5-7)
_SPEED_RAD_S = (2.1, 2.1, 2.1, 2.1, 2.6, 2.6, 2.6)
_TORQUE_MOTION_ENDS_S = 1.0
_SAME_TCP = 0.005, 0.02  # m, rad


class Franka:
    """Implements `core.interfaces.Robot`. Not connected until `connect`; one thread calls it (`read` and `stop` may come from others).

    Args:
        robot: limits, joint names and URDF; its `velocity_max_rad_s` must lie inside libfranka's.
        address: IP or name of the control box (FCI).
        control: joint_velocity (stiff), joint_impedance or cartesian_impedance (yield to contact); see `use_control`.
        gain_hz: share of the remaining distance that is travelled per second, 4 to 8.
        hold_after_s: a motion that gets no new target for so long ends.
        stale_after_s: no new state for so long means that the link is dead.
        connect_timeout_s: libfranka waits without end for another client to go; this does not.
        torque_threshold_nm, force_threshold_n: contact above these is a reflex.
        stiffness: keys of `franka_motion.Stiffness`. lead_rad: how far the springs' reference may run ahead of the arm.
        grasp: keys of `franka_gripper.Grasp`; its force is the embodiment's unless it stands here.
        home_gripper: opens and closes the hand once when connecting, to find its zero (after each power-up of the robot).
    """

    def __init__(
        self,
        robot: RobotDescription,
        address: str,
        *,
        control: str = "joint_velocity",
        gain_hz: float = 6.0,
        hold_after_s: float = 0.25,
        stale_after_s: float = 0.15,
        connect_timeout_s: float = 3.0,
        torque_threshold_nm: float = 20.0,
        force_threshold_n: float = 30.0,
        stiffness: Mapping[str, object] = MappingProxyType({}),
        lead_rad: float = 0.15,
        grasp: Mapping[str, object] = MappingProxyType({}),
        home_gripper: bool = False,
    ) -> None:
        self.robot, self.address = robot, address
        self._hold_after_s, self._timeout_s = hold_after_s, connect_timeout_s
        _check_speeds(robot)
        self.use_control(control)
        self._link_options = {
            "timeout_s": connect_timeout_s,
            "stale_after_s": stale_after_s,
            "hold_after_s": hold_after_s,
            "stiffness": Stiffness(home_rad=robot.home_rad, **stiffness),
            "torque_threshold_nm": torque_threshold_nm,
            "force_threshold_n": force_threshold_n,
        }
        if robot.gripper is not None:
            self._grasp = Grasp(**{"force_n": robot.gripper.force_n, **grasp})
        self._home_gripper = home_gripper
        self._kinematics = Kinematics(robot)
        self._tracker = Tracker(robot, self._kinematics, gain_hz)
        self._reference = PositionReference(robot, self._kinematics, gain_hz, lead_rad)
        self._lock = threading.RLock()
        self._link: FrankaLink | None = None
        self._gripper: FrankaGripper | None = None
        self._closed = False

    def use_control(self, control: str) -> None:
        """Changes how the next target is gone to: the arm stops (0.4 s) and goes on. Raises ConfigError."""
        if control not in CONTROLS:
            raise ConfigError(f"control: '{control}' is unknown; {did_you_mean(control, CONTROLS)}")
        self.control = control

    def connect(self) -> None:
        """Opens arm and hand. Raises DeviceError with the address and the fix; an open link stays as it is."""
        if self._link is not None:
            return
        self._closed = False
        link = FrankaLink(self.address, **self._link_options)
        try:
            self._check_tcp(link.sample())
            if self.robot.gripper is not None:
                options = {"timeout_s": self._timeout_s, "homing": self._home_gripper}
                self._gripper = FrankaGripper(self.address, self.robot.gripper, self._grasp, **options)
        except VlaError:
            link.close()
            raise
        self._link = link

    def read(self) -> RobotState:
        """Returns the newest measurement (a few ms old). Raises StaleData ("link_lost") on a dead link, DeviceError when not connected."""
        sample = self._open_link().sample()
        width_m = self._gripper.width_m if self._gripper else None
        return RobotState(sample.stamp_ns, self.robot.joints, sample.position, sample.velocity, sample.effort, width_m)

    def command(self, action: Action) -> Action:
        """Heads for absolute targets and returns them, or what the speed and joint limits left of them. Does not block.

        Raises:
            DataError: not the channels of this arm. StaleData: the link is dead.
            DeviceError: reflex, communication, joint_limit, user_stop, estop, guiding or fault, with libfranka's sentence, until `recover`.
        """
        with self._lock:
            link = self._open_link()
            sample = link.sample()
            link.check()
            self._check_gripper()
            target, executed = self._target(action, sample.position)
            link.motion.go(target)
        self._command_gripper(action)
        return executed

    def stop(self) -> None:
        """Brakes and holds the position it then has; the hand keeps what it holds. On a dead link the control box does it by itself."""
        with self._lock:
            self._forget()
            if self._gripper is not None:
                self._gripper.resync()
            if self._link is not None:
                self._link.motion.halt()

    def recover(self) -> None:
        """Clears a fault or replaces a dead link, then holds. Raises DeviceError when it cannot. May take some seconds."""
        try:
            self._open_link().sample()
            if self._gripper is not None and self._gripper.fault:
                raise StaleData(self._gripper.fault, "link_lost")
        except (StaleData, DeviceError):
            self._drop()
            self.connect()
            if self._closed:  # while this thread waited for the link
                self._drop()
        link = self._open_link()
        if link.motion.fault or link.sample().fault:
            link.clear_faults(self._timeout_s)
        self.stop()

    def close(self) -> None:
        """Holds, then closes the link. Idempotent."""
        self._closed = True
        try:
            self.stop()
            deadline_s = time.monotonic() + max(self._hold_after_s, _TORQUE_MOTION_ENDS_S)
            while self._link is not None and not self._link.motion.fault and self._link.motion.moving and time.monotonic() < deadline_s:
                time.sleep(0.005)
        finally:
            self._drop()

    def _target(self, action: Action, measured: np.ndarray) -> tuple[Target, Action]:
        stamp_ns, control = action.stamp_ns or time.time_ns(), self.control
        if control == "joint_velocity":
            tracked = self._tracker.follow(action, measured, stamp_ns)
            return Target(control, tracked.velocity), tracked.executed
        position, executed = self._reference.follow(action, measured, stamp_ns)
        velocity = self._reference.velocity
        if control == "joint_impedance":
            return Target(control, velocity, position=position), executed
        twist = self._kinematics.jacobian(position) @ velocity
        return Target(control, velocity, pose=self._kinematics.forward(position), twist=twist), executed

    def _open_link(self) -> FrankaLink:
        if self._link is None:
            raise DeviceError(f"franka at {self.address}: not connected; call connect() or recover()", "device")
        return self._link

    def _forget(self) -> None:
        self._tracker.reset()
        self._reference.reset()

    def _drop(self) -> None:
        with self._lock:
            link, gripper, self._link, self._gripper = self._link, self._gripper, None, None
            self._forget()
        if gripper is not None:
            gripper.close()
        if link is not None:
            link.close()

    def _check_tcp(self, sample: Sample) -> None:
        """The Cartesian spring pulls libfranka's end effector, which is set in Desk: it must be the TCP of the URDF."""
        error = np.abs(pose_error(self._kinematics.forward(sample.position), sample.pose))
        shift_m, turn_rad = error[:3].max(), error[3:].max()
        if self.control == "cartesian_impedance" and (shift_m > _SAME_TCP[0] or turn_rad > _SAME_TCP[1]):
            raise DeviceError(
                f"franka at {self.address}: its end effector lies {shift_m * 1e3:.0f} mm and {turn_rad:.2f} rad from the TCP of "
                f"{self.robot.urdf}; choose the Franka Hand as end effector in Desk, or control: joint_impedance",
                "device",
            )

    def _check_gripper(self) -> None:
        if self._gripper is not None and self._gripper.fault:
            raise DeviceError(f"{self._gripper.fault}; clear the cause, then ~/recover", "gripper")

    def _command_gripper(self, action: Action) -> None:
        gripper = self._gripper  # recover, in its thread, may take it away
        if gripper is None:
            return
        for name, value in zip(action.channels, action.data, strict=True):
            if name == "gripper.width":
                gripper.want_width(float(value))
            elif name == "gripper.closed":
                gripper.want_closed(float(value))


def _check_speeds(robot: RobotDescription) -> None:
    for joint, speed, most in zip(robot.joints, robot.velocity_max_rad_s, _SPEED_RAD_S, strict=False):
        if speed > most:
            raise ConfigError(f"velocity_max_rad_s of {joint} = {speed}, libfranka takes {most} rad/s at most; lower it in the embodiment")
