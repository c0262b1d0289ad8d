"""Franka Research 3 with the Franka Hand, through franky (libfranka). The same file drives the robot and franky-sim.

Every target becomes a joint velocity: smoothed feed-forward from consecutive targets plus `gain_hz` times the distance to go. The control
box ends it by itself after `hold_after_s`, so that an arm whose computer died stops.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np

from vla_ros.core.channels import TCP_POSE, mode_of
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DataError, DeviceError, StaleData, VlaError
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.franka_gripper import FrankaGripper
from vla_ros.robots.franka_link import FrankaLink, Sample
from vla_ros.robots.kinematics import Kinematics, displaced, pose_error, pose_matrix, pose_vector

_log = logging.getLogger(__name__)
# Targets further apart in time than this are not one motion: no feed-forward between them.
_FEED_FORWARD_GAP_S = 0.25
# Where a new chunk takes over, the target steps by some mm. Unsmoothed, that step would be travelled within one command period, as a jerk.
_FEED_FORWARD_TIME_S = 0.06
# franky raises RuntimeError above 2.175 (joints 1-4) and 2.61 (joints 5-7)
_SPEED_RAD_S = (2.1, 2.1, 2.1, 2.1, 2.6, 2.6, 2.6)


class Franka:
    """Implements `core.interfaces.Robot`. Not connected until `connect`; one thread calls it (`read` and `stop` may come from others).

    Args:
        robot: limits, joint names and URDF; its `velocity_max_rad_s` must lie inside libfranka's.
        address: IP or name of the control box (FCI).
        gain_hz: share of the remaining distance that is travelled per second, 4 to 8.
        hold_after_s: the control box stops a motion that gets no new target for so long.
        stale_after_s: no new state for so long means that the link is dead.
        connect_timeout_s: libfranka waits without end for another client to go; this does not.
        torque_threshold_nm, force_threshold_n: contact above these is a reflex.
        home_gripper: opens and closes the hand once when connecting, to find its zero (after each power-up of the robot).
    """

    def __init__(
        self,
        robot: RobotDescription,
        address: str,
        *,
        gain_hz: float = 6.0,
        hold_after_s: float = 0.25,
        stale_after_s: float = 0.15,
        connect_timeout_s: float = 3.0,
        torque_threshold_nm: float = 20.0,
        force_threshold_n: float = 30.0,
        home_gripper: bool = False,
    ) -> None:
        self.robot = robot
        self.address = address
        self._gain_hz, self._hold_after_s, self._timeout_s = gain_hz, hold_after_s, connect_timeout_s
        self._link_options = {
            "timeout_s": connect_timeout_s,
            "stale_after_s": stale_after_s,
            "torque_threshold_nm": torque_threshold_nm,
            "force_threshold_n": force_threshold_n,
        }
        self._home_gripper = home_gripper
        for joint, speed, most in zip(robot.joints, robot.velocity_max_rad_s, _SPEED_RAD_S, strict=False):
            if speed > most:
                raise ConfigError(
                    f"velocity_max_rad_s of {joint} = {speed}, libfranka takes {most} rad/s at most; lower it in the embodiment"
                )
        self._kinematics = Kinematics(robot)
        self._targets = {
            "joint_position": tuple(f"{joint}.position" for joint in robot.joints),
            "joint_velocity": tuple(f"{joint}.velocity" for joint in robot.joints),
            "tcp_pose": TCP_POSE,
        }
        self._lock = threading.RLock()
        self._link: FrankaLink | None = None
        self._gripper: FrankaGripper | None = None
        self._closed = False
        self._last: tuple[str, int, np.ndarray, np.ndarray] | None = None  # mode, stamp, target, feed-forward

    def connect(self) -> None:
        """Opens arm and hand. Raises DeviceError with the address and the fix; an open link stays as it is."""
        if self._link is not None:
            return
        self._closed = False
        link = FrankaLink(self.address, **self._link_options)
        try:
            if self.robot.gripper is not None:
                self._gripper = FrankaGripper(self.address, self.robot.gripper, timeout_s=self._timeout_s, homing=self._home_gripper)
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
            DeviceError: "fault" with libfranka's reason (reflex, user stop, ...), until `recover`.
        """
        mode, target = self._target(action)
        with self._lock:
            link = self._open_link()
            sample = link.sample()
            self._check_fault(sample)
            stamp_ns = action.stamp_ns or time.time_ns()
            wanted, bias = self._velocity(mode, target, stamp_ns, sample.position)
            velocity = self._kinematics.limit(sample.position, wanted)
            link.move(velocity, self._hold_after_s)
            self._last = (mode, stamp_ns, target, bias)
        executed = action.data.copy()
        if not np.allclose(velocity, wanted, rtol=0.0, atol=1e-9):
            index = [action.channels.index(name) for name in self._targets[mode]]
            executed[index] = self._reached(mode, velocity, bias, sample.position)
        self._command_gripper(action)
        return replace(action, data=executed)

    def stop(self) -> None:
        """Brakes and holds the position it then has; the hand keeps what it holds. On a dead link the control box does it by itself."""
        with self._lock:
            self._last = None
            if self._link is None:
                return
            if self._gripper is not None:
                self._gripper.resync()
            try:
                self._link.sample()
                self._link.halt()
            except StaleData:
                return
            except DeviceError as error:
                # the control box has already stopped the arm; the link keeps the reason and `command` tells it
                _log.error(str(error))

    def recover(self) -> None:
        """Clears a fault or replaces a dead link, then holds. Raises DeviceError when it cannot. May take some seconds."""
        try:
            sample = self._open_link().sample()
            if self._gripper is not None and self._gripper.fault:
                raise StaleData(self._gripper.fault, "link_lost")
        except (StaleData, DeviceError):
            self._drop()
            self.connect()
            if self._closed:  # while this thread waited for the link
                self._drop()
            sample = self._open_link().sample()
        if sample.fault:
            self._link.clear_faults(self._timeout_s)
        self.stop()

    def close(self) -> None:
        """Holds, then closes the link. Idempotent."""
        self._closed = True
        try:
            self.stop()
            deadline = time.monotonic() + self._hold_after_s
            while self._link is not None and self._link.moving and time.monotonic() < deadline:
                time.sleep(0.005)
        finally:
            self._drop()

    def _open_link(self) -> FrankaLink:
        if self._link is None:
            raise DeviceError(f"franka at {self.address}: not connected; call connect() or recover()", "device")
        return self._link

    def _drop(self) -> None:
        with self._lock:
            link, gripper, self._link, self._gripper, self._last = self._link, self._gripper, None, None, None
        if gripper is not None:
            gripper.close()
        if link is not None:
            link.close()

    def _check_fault(self, sample: Sample) -> None:
        fault = sample.fault or (self._gripper.fault if self._gripper else "")
        if fault:
            raise DeviceError(f"franka at {self.address}: {fault}; clear the cause, then ~/recover", "fault")

    def _target(self, action: Action) -> tuple[str, np.ndarray]:
        """Returns the mode and its targets in the order of the joints, or of x, y, z, rx, ry, rz."""
        mode = mode_of(action.channels)
        names = self._targets[mode]
        missing = [name for name in names if name not in action.channels]
        if missing:
            raise DataError(f"franka: {', '.join(missing)} is missing; {mode} needs {', '.join(names)}", "channels")
        return mode, action.data[[action.channels.index(name) for name in names]]

    def _velocity(self, mode: str, target: np.ndarray, stamp_ns: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the joint velocity [7] rad/s towards `target` before limits, and its feed-forward part (joint space or twist)."""
        if mode == "joint_velocity":
            return target, np.zeros_like(target)
        elapsed_s = (stamp_ns - self._last[1]) * 1e-9 if self._last and self._last[0] == mode else 0.0
        follows = 0.0 < elapsed_s <= _FEED_FORWARD_GAP_S
        if mode == "joint_position":
            bias = self._smoothed(target - self._last[2], elapsed_s) if follows else np.zeros_like(target)
            return bias + self._gain_hz * (target - position), bias
        pose = pose_matrix(target)
        bias = self._smoothed(pose_error(pose, pose_matrix(self._last[2])), elapsed_s) if follows else np.zeros(6)
        twist = bias + self._gain_hz * pose_error(pose, self._kinematics.forward(position))
        return self._kinematics.velocity_for(position, twist), bias

    def _smoothed(self, step: np.ndarray, elapsed_s: float) -> np.ndarray:
        """First-order low-pass over the velocity step / elapsed_s; the velocity's integral, the way travelled, stays the same."""
        last = self._last[3]
        return last + (step / elapsed_s - last) * elapsed_s / (_FEED_FORWARD_TIME_S + elapsed_s)

    def _reached(self, mode: str, velocity: np.ndarray, bias: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The target for which `velocity` would have been the answer."""
        if mode == "joint_velocity":
            return velocity
        if mode == "joint_position":
            return position + (velocity - bias) / self._gain_hz
        twist = self._kinematics.jacobian(position) @ velocity
        return pose_vector(displaced(self._kinematics.forward(position), (twist - bias) / self._gain_hz))

    def _command_gripper(self, action: Action) -> None:
        gripper = self._gripper  # recover, in its thread, may take it away
        if gripper is None:
            return
        for name, value in zip(action.channels, action.data, strict=True):
            if name == "gripper.width":
                gripper.want_width(float(value))
            elif name == "gripper.closed":
                gripper.want_closed(float(value))
