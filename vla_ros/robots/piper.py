"""AgileX PiPer with its gripper, through piper_sdk. The same file drives the arm on SocketCAN and the emulated one on slcan over TCP.

Every target becomes a joint position (`tracking.PositionReference`), sent as MOVE J in CAN mode. When commands stop, the arm stays at the
last one: it holds by itself. The drives are never disabled from here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, StaleData
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.piper_braking import standing_point
from vla_ros.robots.piper_link import PiperLink, Sample
from vla_ros.robots.tracking import PositionReference

_log = logging.getLogger(__name__)
_CLOSE_ABOVE, _OPEN_BELOW = 0.6, 0.4  # gripper.closed; between them the gripper stays as it is
_TORQUE_MAX_NM = 5.0
_FRESH_S = 0.1


class Piper:
    """Implements `core.interfaces.Robot`. Not connected until `connect`; one thread calls it (`read` and `stop` may come from others).

    Args:
        robot: limits, joint names and URDF.
        can: SocketCAN interface ("can0"), or an slcan adapter ("/dev/ttyACM0", "socket://127.0.0.1:29536").
        gain_hz: share of the remaining distance that is travelled per second.
        lead_rad: how far the target may run ahead of the measured position.
        stale_after_s: no joint feedback for so long means that the link is dead.
        frozen_after_s: joint feedback that stays identical for so long while the target is far is a fault.
        timeout_s: for the first feedback, and for enabling the drives.
        speed_percent: top speed of the arm's own planner; the embodiment's limits lie below it.
        gripper_torque_nm: of the gripper's motor, 0 to 5.
    """

    def __init__(
        self,
        robot: RobotDescription,
        can: str,
        *,
        gain_hz: float = 8.0,
        lead_rad: float = 0.3,
        stale_after_s: float = 0.15,
        frozen_after_s: float = 0.5,
        timeout_s: float = 3.0,
        speed_percent: int = 100,
        gripper_torque_nm: float = 1.0,
    ) -> None:
        if len(robot.joints) != 6:
            raise ConfigError(f"robot {robot.name}: {len(robot.joints)} joints, a PiPer has 6")
        if not 1 <= speed_percent <= 100 or not 0 < gripper_torque_nm <= _TORQUE_MAX_NM:
            given = f"speed_percent = {speed_percent}, gripper_torque_nm = {gripper_torque_nm}"
            raise ConfigError(f"robot {robot.name}: {given}; expected 1 .. 100 and above 0 up to {_TORQUE_MAX_NM:g}")
        self.robot = robot
        self.channel = can
        self._timeout_s, self._torque_nm = timeout_s, gripper_torque_nm
        self._link_options = {"timeout_s": timeout_s, "stale_after_s": stale_after_s, "speed_percent": int(speed_percent)}
        self._reference = PositionReference(robot, Kinematics(robot), gain_hz, lead_rad)
        self._watch = _Watch(lead_rad / 2, frozen_after_s)
        self._low, self._high = np.array(robot.position_min_rad), np.array(robot.position_max_rad)
        self._lock = threading.RLock()
        self._link: PiperLink | None = None
        self._holding = False
        self._width_m: float | None = None
        self._closed = False

    def connect(self) -> None:
        """Opens the bus, enables the drives and holds. Raises DeviceError with the fix; an arm that reports a fault is only read."""
        if self._link is not None:
            return
        self._closed = False
        link = PiperLink(self.channel, **self._link_options)
        try:
            reason, text = link.sample().fault
            if reason:
                _log.warning("piper on %s: %s; not enabled, ~/recover does it", self.channel, text)
            else:
                link.enable(self._torque_nm, self._timeout_s)
        except (DeviceError, StaleData) as error:
            link.close()
            raise DeviceError(str(error), error.reason) from error
        self._holding, self._link = link.enabled, link

    def read(self) -> RobotState:
        """Returns the newest measurement (a few ms old). Raises StaleData ("link_lost") on a dead link, DeviceError when not connected."""
        sample = self._open_link().sample()
        width_m = sample.gripper_width_m if self.robot.gripper else None
        return RobotState(sample.stamp_ns, self.robot.joints, sample.position, sample.velocity, sample.effort, width_m)

    def command(self, action: Action) -> Action:
        """Heads for absolute targets and returns them, or what the speed and joint limits left of them. Does not block.

        Raises:
            DataError: not the channels of this arm. StaleData: the link is dead.
            DeviceError: with the reason that the arm gives (estop, collision, joint_comm, ...), "frozen" for feedback that stands still
                while the target moves, until `recover`.
        """
        with self._lock:
            link = self._open_link()
            sample = link.sample()
            self._check_fault(link, sample)
            target, executed = self._reference.follow(action, sample.position, action.stamp_ns or time.time_ns())
            self._watch.sent(target)
            link.move(target)
            self._holding = False
            self._command_gripper(link, action)
        return executed

    def stop(self) -> None:
        """Holds the measured position, a moving arm where it can stand; the gripper keeps what it holds. Without a trusted measurement
        the last target stays.
        """
        with self._lock:
            self._reference.reset()
            if self._link is None or self._holding or self._watch.frozen:
                return
            self._watch.reset()
            try:
                sample = self._link.sample()
            except StaleData as error:
                _log.warning("piper on %s: cannot be told to stop: %s", self.channel, error)
                return
            now_s = time.monotonic()
            # after a fault the arm knows no target any more
            sent = [] if sample.fault[0] else [(now_s - sent_s, target) for sent_s, target in self._link.sent]
            rest = standing_point(sample.position, sample.velocity, sent or [(0.0, sample.position)])
            self._link.move(np.clip(rest, self._low, self._high))
            # what a faulty controller does with the target is not known: say it again next time
            self._holding = not sample.fault[0]

    def recover(self) -> None:
        """Clears a fault or replaces a dead link, enables, then holds. Raises DeviceError when it cannot. Takes some seconds.

        After an emergency stop the arm loses its power for a moment and sinks: let somebody hold it.
        """
        try:
            link = self._open_link()
            sample = link.sample()
            if self._watch.frozen and self._watch.repeats(link.sample, _FRESH_S):
                # blocked, or still frozen: where it is told to be is safer than where it says it is
                self._holding = True
        except (StaleData, DeviceError):
            self._drop()
            self.connect()
            if self._closed:  # while this thread waited for the link
                self._drop()
            link = self._open_link()
            sample = link.sample()
        if sample.fault[0] or not link.enabled:
            link.clear_faults(self._torque_nm, self._timeout_s)
            self._holding = False
        self._watch.reset()
        self._width_m = None
        self.stop()

    def close(self) -> None:
        """Holds, then closes the bus; the drives stay enabled. Idempotent."""
        self._closed = True
        try:
            self.stop()
        finally:
            self._drop()

    def _open_link(self) -> PiperLink:
        link = self._link
        if link is None:
            raise DeviceError(f"piper on {self.channel}: not connected; call connect() or recover()", "device")
        return link

    def _drop(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            self._reference.reset()
            self._width_m = None
        if link is not None:
            link.close()

    def _check_fault(self, link: PiperLink, sample: Sample) -> None:
        reason, text = sample.fault
        if not reason and not link.enabled:
            reason, text = "motor_disabled", "the drives are not enabled"
        if not reason:
            reason, text = self._watch.fault(sample, time.monotonic())
        if reason:
            raise DeviceError(f"piper on {self.channel}: {text}; clear the cause, then ~/recover", reason)

    def _command_gripper(self, link: PiperLink, action: Action) -> None:
        gripper = self.robot.gripper
        width_m = None
        for name, value in zip(action.channels, action.data, strict=True):
            if name == "gripper.width":
                width_m = float(np.clip(value, gripper.width_min_m, gripper.width_max_m))
            elif name == "gripper.closed" and not _OPEN_BELOW <= value <= _CLOSE_ABOVE:
                width_m = gripper.width_min_m if value > _CLOSE_ABOVE else gripper.width_max_m
        if width_m is not None and width_m != self._width_m:
            self._width_m = width_m
            link.grip(width_m, self._torque_nm)


class _Watch:
    """Tells feedback that stands still although the arm was told to move: the controller repeats itself, or the arm is blocked hard.

    A standing arm may give identical frames too, so that only a far target makes it a fault.
    """

    def __init__(self, far_rad: float, after_s: float) -> None:
        self._far_rad, self._after_s = far_rad, after_s
        self.reset()

    def reset(self) -> None:
        self.frozen = False
        self._target: np.ndarray | None = None
        self._last = np.zeros(0)
        self._since_s = 0.0

    def sent(self, target: np.ndarray) -> None:
        self._target = target

    def fault(self, sample: Sample, now_s: float) -> tuple[str, str]:
        """Returns (reason, sentence) once the same has been measured for too long; latched until `reset`."""
        seen = _values(sample)
        far = self._target is not None and float(np.abs(self._target - sample.position).max()) > self._far_rad
        if not far or not np.array_equal(seen, self._last):
            self._last, self._since_s = seen, now_s
        self.frozen |= now_s - self._since_s > self._after_s
        if not self.frozen:
            return "", ""
        return "frozen", f"measurements repeat to the last digit for {self._after_s:g} s, the target is {self._far_rad:g} rad away or more"

    def repeats(self, sample: Callable[[], Sample], for_s: float) -> bool:
        """Whether what was measured last comes again and again for `for_s`."""
        deadline_s = time.monotonic() + for_s
        while same := np.array_equal(_values(sample()), self._last):
            if time.monotonic() > deadline_s:
                break
            time.sleep(for_s / 10)
        return same


def _values(sample: Sample) -> np.ndarray:
    return np.concatenate([sample.position, sample.velocity, sample.effort])
