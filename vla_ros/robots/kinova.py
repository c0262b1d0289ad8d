"""Kinova Gen3 with a Robotiq 2F-85, over Kinova's own network protocol. The same file drives the robot and the simulated base.

Every target becomes a joint velocity (`tracking.Tracker`), sent as a joint speed command of high-level servoing; with `control: twist`
TCP targets become the TCP's twist instead, and the base finds the joints' speeds.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from vla_ros.core.channels import mode_of
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, StaleData, did_you_mean
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.kortex import motion
from vla_ros.robots.kortex.feedback import Sample
from vla_ros.robots.kortex.link import KortexLink
from vla_ros.robots.kortex.session import Login
from vla_ros.robots.kortex.wire import TCP_PORT, UDP_PORT
from vla_ros.robots.tracking import Tracker

_log = logging.getLogger(__name__)
# the actuators' own limits: 80 degrees/s (joints 1-4), 70 degrees/s (joints 5-7)
_SPEED_RAD_S = (1.396, 1.396, 1.396, 1.396, 1.221, 1.221, 1.221)
# the base's own limits for twists: 50 cm/s, 100 degrees/s (Kinova, Kinovarobotics/Kinova-kortex2_Gen3_G3L issue 14)
_TCP_M_S, _TCP_RAD_S = 0.5, 1.745
CONTROLS = ("joint_speeds", "twist")
# the base answers each gripper command: smaller changes of its position (0 .. 1) are not worth one
_GRIPPER_STEP = 0.005


class Turns:
    """Makes continuous joint positions of angles that the base tells modulo one turn.

    A joint that has less than a turn of range lies within half a turn of 0. One that turns without end begins nearest to home.
    """

    def __init__(self, robot: RobotDescription) -> None:
        low, high, home = (np.array(v) for v in (robot.position_min_rad, robot.position_max_rad, robot.home_rad))
        self._last = np.where(high - low < 2 * np.pi, 0.0, home)

    def __call__(self, angle_rad: np.ndarray) -> np.ndarray:
        """Returns the positions [N] rad that have these angles and are nearest to the last ones."""
        self._last = self._last + np.remainder(angle_rad - self._last + np.pi, 2 * np.pi) - np.pi
        return self._last


class Kinova:
    """Implements `core.interfaces.Robot`. Not connected until `connect`; one thread calls it (`read` and `stop` may come from others).

    Args:
        robot: limits, joint names and URDF.
        address: IP or name of the base.
        control: what TCP targets are followed by, one of CONTROLS; joint targets always by joint speeds.
        username, password: a user of the robot's web app.
        tcp_port, udp_port: of the base; Kinova's own unless somebody forwards them.
        gain_hz: share of the remaining distance that is travelled per second, 4 to 8.
        hold_after_s: zero speed is sent when no new target came for so long.
        stale_after_s: no new state for so long means that the link is dead.
        request_timeout_s: a request without an answer for so long means the same.
        motion_timeout_s: the base stops the arm by itself when this computer has been silent for so long.
        session_timeout_s: and ends the session after so long.
    """

    def __init__(
        self,
        robot: RobotDescription,
        address: str,
        *,
        control: str = "joint_speeds",
        username: str = "admin",
        password: str = "admin",
        tcp_port: int = TCP_PORT,
        udp_port: int = UDP_PORT,
        gain_hz: float = 6.0,
        hold_after_s: float = 0.25,
        stale_after_s: float = 0.15,
        request_timeout_s: float = 0.5,
        motion_timeout_s: float = 0.15,
        session_timeout_s: float = 10.0,
    ) -> None:
        self.robot = robot
        self.address = address
        self._ports, self._timeout_s = (tcp_port, udp_port), request_timeout_s
        self._login = Login(username, password, session_timeout_s, motion_timeout_s)
        self._hold_after_s, self._stale_after_s = hold_after_s, stale_after_s
        if control not in CONTROLS:
            raise ConfigError(f"control: '{control}'; {did_you_mean(control, CONTROLS)}")
        _check_speeds(robot, control)
        self._by_twist = control == "twist"
        self._tracker = Tracker(robot, Kinematics(robot), gain_hz)
        self._turns = Turns(robot)
        self._lock = threading.RLock()
        self._link: KortexLink | None = None
        self._wanted: float | None = None
        self._closed = False

    def connect(self) -> None:
        """Logs in. Raises DeviceError with the address and the fix; an open link stays as it is."""
        self._closed = False
        if self._link is None:
            self._link = KortexLink(
                self.address,
                self._ports,
                self._login,
                count=len(self.robot.joints),
                unwrap=self._turns,
                hold_after_s=self._hold_after_s,
                stale_after_s=self._stale_after_s,
                timeout_s=self._timeout_s,
            )

    def read(self) -> RobotState:
        """Returns the newest measurement (some ms old). Raises StaleData ("link_lost") on a dead link, DeviceError when not connected."""
        sample = self._open_link().sample()
        gripper = self.robot.gripper
        width_m = None
        if gripper is not None and sample.closed is not None:
            width_m = gripper.width_max_m - sample.closed * (gripper.width_max_m - gripper.width_min_m)
        return RobotState(sample.stamp_ns, self.robot.joints, sample.position, sample.velocity, sample.effort, width_m)

    def command(self, action: Action) -> Action:
        """Heads for absolute targets and returns them, or what the speed and joint limits left of them. Does not block.

        Raises:
            DataError: not the channels of this arm. StaleData: the link is dead.
            DeviceError: "fault" or "estop", with the base's names for it, until `recover`.
        """
        with self._lock:
            link = self._open_link()
            sample = link.sample()
            self._check(link, sample)
            stamp_ns = action.stamp_ns or time.time_ns()
            if self._by_twist and mode_of(action.channels) == "tcp_pose":
                twist, executed = self._tracker.follow_tcp(action, sample.position, stamp_ns)
                link.move(motion.twist(twist))
            else:
                tracked = self._tracker.follow(action, sample.position, stamp_ns)
                executed = tracked.executed
                link.move(motion.joint_speeds(tracked.velocity))
            self._command_gripper(link, action)
        return executed

    def stop(self) -> None:
        """Brakes; the base then holds the position, the gripper what it holds. On a dead link the base stops by itself."""
        with self._lock:
            self._tracker.reset()
            self._wanted = None  # somebody else (a person, a simulator's reset) may move the fingers now
            if self._link is not None:
                self._link.halt()

    def recover(self) -> None:
        """Clears faults, replaces a dead link, then holds. Raises DeviceError when it cannot. May take some seconds."""
        try:
            if self._link is None:
                raise StaleData(f"kinova at {self.address}: not connected", "link_lost")
            self._link.clear_faults(self._timeout_s)
        except StaleData:
            self._drop()
            self.connect()
            try:
                self._open_link().clear_faults(self._timeout_s)
            except StaleData as error:
                raise DeviceError(str(error), "device") from error
        if self._closed:  # while this thread waited for the base
            self._drop()
        self.stop()

    def close(self) -> None:
        """Stops the arm, then logs out. Idempotent."""
        self._closed = True
        self.stop()
        self._drop()

    def _open_link(self) -> KortexLink:
        link = self._link  # recover, in its thread, may take it away
        if link is None:
            raise DeviceError(f"kinova at {self.address}: not connected; call connect() or recover()", "device")
        return link

    def _drop(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            self._tracker.reset()
            self._wanted = None
        if link is not None:
            link.close()

    def _check(self, link: KortexLink, sample: Sample) -> None:
        if sample.fault:
            raise DeviceError(f"kinova at {self.address}: {sample.fault}; clear the cause, then ~/recover", sample.reason)
        link.check()

    def _command_gripper(self, link: KortexLink, action: Action) -> None:
        gripper = self.robot.gripper
        if gripper is None:
            return
        for name, value in zip(action.channels, action.data, strict=True):
            if name not in ("gripper.width", "gripper.closed"):
                continue
            opening = (value - gripper.width_min_m) / (gripper.width_max_m - gripper.width_min_m)
            wanted = float(np.clip(value if name == "gripper.closed" else 1.0 - opening, 0.0, 1.0))
            if self._wanted is None or abs(wanted - self._wanted) > _GRIPPER_STEP:
                link.grip(wanted)
                self._wanted = wanted


def _check_speeds(robot: RobotDescription, control: str) -> None:
    """Raises ConfigError: another arm, or faster than the actuators, or with `control: twist` than the base, can go."""
    if len(robot.joints) != len(_SPEED_RAD_S):
        raise ConfigError(f"robot {robot.name}: {len(robot.joints)} joints, the Gen3 driven here has {len(_SPEED_RAD_S)}")
    for joint, speed, most in zip(robot.joints, robot.velocity_max_rad_s, _SPEED_RAD_S, strict=True):
        if speed > most:
            raise ConfigError(f"velocity_max_rad_s of {joint} = {speed}, the actuator takes {most} rad/s; lower it in the embodiment")
    for key, most in (("tcp_velocity_max_m_s", _TCP_M_S), ("tcp_rotation_max_rad_s", _TCP_RAD_S)):
        if control == "twist" and getattr(robot, key) > most:
            raise ConfigError(f"{key} = {getattr(robot, key)}, the base takes {most} at most in a twist; lower it in the embodiment")
