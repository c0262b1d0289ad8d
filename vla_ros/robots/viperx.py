"""ViperX 300 6-DoF (ALOHA's follower) on its Dynamixel servos: ids 1-9 on one bus, two of them shadows, a gripper with limited current.

Torque is never switched off, not by `stop` nor by `close`: the arm would fall. Whatever happens to the computer, the servos hold the last
goal they got, which is at most one command ahead of the measured position.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import numpy as np

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, StaleData, VlaError
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.dynamixel_bus import DynamixelBus, latency_timer_ms
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.tracking import PositionReference
from vla_ros.robots.viperx_clock import prove_alive
from vla_ros.robots.viperx_link import Sample, ViperXLink
from vla_ros.robots.viperx_servos import GRIPPER, Linkage, ServoSettings, ServoSetup, joint_goals, ticks_of

_CLOSE_ABOVE, _OPEN_BELOW = 0.6, 0.4  # of gripper.closed
_log = logging.getLogger(__name__)


class ViperX:
    """Implements `core.interfaces.Robot`. Not connected until `connect`; one thread calls it (`read` and `stop` may come from others).

    Args:
        robot: limits, joint names and URDF; its position limits are written into the servos.
        port: serial device of the arm's bus.
        baud: of the servos.
        gain_hz: share of the remaining distance that is travelled per second.
        lead_rad: how far the goals may run ahead of the measured positions.
        blocked_rad: a joint that stays so far behind its goal without moving is a fault ("blocked").
        stale_after_s: a servo without a new measurement for so long means that the link is dead.
        timeout_s: longest wait for an answer on the bus.
        rate_hz: of the measurements.
        gains: position P, I, D of the servos. profile_s: time in which a servo reaches a goal.
        offsets_rad: servo angle minus joint angle [6], for an arm whose horns were mounted otherwise.
        finger_closed_m: distance of a finger from the middle when closed (ALOHA's printed fingers: 0.018).
        horn_m, arm_m: the gripper's linkage (ALOHA 2: 0.0275 and 0.035).
    """

    def __init__(
        self,
        robot: RobotDescription,
        port: str,
        *,
        baud: int = 1_000_000,
        gain_hz: float = 10.0,
        lead_rad: float = 0.3,
        blocked_rad: float = 0.2,
        stale_after_s: float = 0.1,
        timeout_s: float = 0.02,
        rate_hz: float = 100.0,
        gains: Sequence[int] = (800, 0, 0),
        profile_s: float = 0.03,
        offsets_rad: Sequence[float] = (0.0,) * 6,
        finger_closed_m: float = 0.018,
        horn_m: float = 0.022,
        arm_m: float = 0.036,
    ) -> None:
        for what, values, count in (("joints", robot.joints, 6), ("gains", gains, 3), ("offsets_rad", offsets_rad, 6)):
            if len(values) != count:
                raise ConfigError(f"viperx at {port}: {len(values)} {what}, expected {count}")
        self.robot, self.port = robot, port
        self._baud, self._timeout_s = baud, timeout_s
        self._link_options = {"rate_hz": rate_hz, "stale_after_s": stale_after_s, "blocked_rad": blocked_rad}
        self._settings = ServoSettings(tuple(gains), profile_s, tuple(offsets_rad), Linkage(horn_m, arm_m, finger_closed_m))
        self._reference = PositionReference(robot, Kinematics(robot), gain_hz, lead_rad)
        self._lock = threading.RLock()
        self._link: ViperXLink | None = None
        self._closed = False

    def connect(self) -> None:
        """Opens the bus, sets the servos up and holds where the arm is; an open link stays as it is.

        Raises:
            DeviceError: with the port and the fix; "link_lost" when servos answer, but late or the same for ever; also when the arm is held
                with settings that cannot be changed without dropping it.
        """
        self._closed = False
        if self._link is None:
            self._open(reboot=False)

    def read(self) -> RobotState:
        """Returns the newest measurement (at most 10 ms old). Raises StaleData ("link_lost"), DeviceError when not connected."""
        sample = self._open_link().sample()
        width_m = self._settings.linkage.width(sample.gripper_rad) if self.robot.gripper else None
        return RobotState(sample.stamp_ns, self.robot.joints, self._joints(sample), sample.velocity, sample.effort, width_m)

    def command(self, action: Action) -> Action:
        """Heads for absolute targets and returns them, or what the speed and joint limits left of them. Does not block.

        Raises:
            DataError: not the channels of this arm. StaleData: the link is dead.
            DeviceError: overload, overheating, voltage, encoder, electrical_shock, torque_lost or blocked, until `recover`.
        """
        with self._lock:
            link = self._open_link()
            sample = link.sample()
            if link.fault:
                raise DeviceError(f"{link.fault[1]}; clear the cause, then ~/recover", link.fault[0])
            position, executed = self._reference.follow(action, self._joints(sample), action.stamp_ns or time.time_ns())
            link.move(joint_goals(position, self._settings.offsets_rad) | self._gripper_goal(action))
        return executed

    def stop(self) -> None:
        """Holds the measured position; the gripper keeps what it holds. On a dead link the servos hold their last goal by themselves."""
        with self._lock:
            self._reference.reset()
            if self._link is not None:
                self._link.hold()

    def recover(self) -> None:
        """Restarts servos with a hardware error, switches lost torque on again or reopens a dead port, then holds. May take some seconds.

        A servo that restarts has no torque for some 0.3 s: support the arm.

        Raises:
            DeviceError, StaleData: it cannot.
        """
        try:
            link = self._open_link()
            link.sample()
            faulty = link.fault is not None
        except (StaleData, DeviceError):
            faulty = True
        if faulty:
            self._drop()
            self._open(reboot=True)
            if self._closed:  # while this thread waited for the servos
                self._drop()
        self.stop()

    def close(self) -> None:
        """Holds, then closes the port; the servos keep their torque. Idempotent."""
        self._closed = True
        self.stop()
        self._drop()

    def _open(self, *, reboot: bool) -> None:
        bus = DynamixelBus(self.port, baud=self._baud, timeout_s=self._timeout_s)
        try:
            bus.open()
            setup = ServoSetup(bus, self.robot, self._settings)
            setup.find()
            prove_alive(bus, setup.servos)  # before any of them is told to hold where it says it is
            setup.run(reboot=reboot)
        except StaleData as error:
            bus.close()
            raise DeviceError(str(error), "link_lost") from error
        except VlaError:
            bus.close()
            raise
        latency_ms = latency_timer_ms(self.port)
        if latency_ms is not None and latency_ms > 1:
            _log.warning("%s: the adapter's latency timer is %d ms, which slows reading down: set it to 1 by udev", self.port, latency_ms)
        link = ViperXLink(bus, setup.servos, **self._link_options)
        try:
            link.start()
        except StaleData as error:
            link.close()
            raise DeviceError(str(error), "link_lost") from error
        with self._lock:
            self._reference.reset()
            self._link = link

    def _drop(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            self._reference.reset()
        if link is not None:
            link.close()

    def _open_link(self) -> ViperXLink:
        link = self._link
        if link is None:
            raise DeviceError(f"viperx at {self.port}: not connected; call connect() or recover()", "device")
        return link

    def _joints(self, sample: Sample) -> np.ndarray:
        return sample.position - self._settings.offsets_rad

    def _gripper_goal(self, action: Action) -> dict[int, int]:
        gripper = self.robot.gripper
        for name, value in zip(action.channels, action.data, strict=True) if gripper else ():
            if name == "gripper.width":
                width_m = min(gripper.width_max_m, max(gripper.width_min_m, float(value)))
            elif name == "gripper.closed" and (value > _CLOSE_ABOVE or value < _OPEN_BELOW):
                width_m = gripper.width_min_m if value > _CLOSE_ABOVE else gripper.width_max_m
            else:
                continue
            return {GRIPPER: ticks_of(self._settings.linkage.angle(width_m))}
        return {}
