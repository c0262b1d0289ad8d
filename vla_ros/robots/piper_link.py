"""The connection to a PiPer: one thread that reads the bus, one that writes it, nothing that can block its caller for ever.

The SDK's own reader decodes and copies all of about 3000 frames a second and says nothing when they end. Here the reader keeps the newest
frame of each id, whoever asks for a sample has the SDK's parser decode those, and the time of arrival is ours.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.robots.piper_can import C_PiperParserV2, PiperMessage, can, open_interface
from vla_ros.robots.piper_status import ENABLED, drive_states, fault_of

STATUS, JOINTS, GRIPPER, FAST, SLOW = 0x2A1, (0x2A5, 0x2A6, 0x2A7), 0x2A8, range(0x251, 0x257), range(0x261, 0x267)
_WANTED = (STATUS, *JOINTS, GRIPPER, *FAST, *SLOW)
_CAN_MODE, _MOVE_J, _ALL_MOTORS, _RESUME, _CLEAR = 0x01, 0x01, 7, 0x02, 0xAE
_GRIP, _GRIP_CLEARED = 0x01, 0x03
_MILLIDEGREES = 180e3 / np.pi
_DRAIN_PERIOD_S = 0.002
_POLL_S = 0.005
_RESEND_S, _GRACE_S, _ORDER_S = 0.1, 0.01, 0.02
_STATUS_STALE_S = 1.0
_SENT = 4  # targets that are remembered


@dataclass(frozen=True)
class Sample:
    """One measurement: `position` [6] rad, `velocity` [6] rad/s, `effort` [6] N m; `fault` (reason, sentence), else empty."""

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    gripper_width_m: float
    fault: tuple[str, str]


class PiperLink:
    """An open bus on which an arm talks. The object is dead after `StaleData`: close it and make a new one.

    Attributes:
        enabled: whether `enable` has enabled the drives; one that is not is a fault from then on.
        sent: what the arm was last told, and when (monotonic s): (s, [6] rad), the newest last.

    Raises:
        DeviceError: no such bus, or nothing heard on it within `timeout_s`.
    """

    def __init__(self, channel: str, *, timeout_s: float, stale_after_s: float, speed_percent: int) -> None:
        self.channel = channel
        self._stale_after_s, self._speed = stale_after_s, speed_percent
        self._interface = open_interface(channel, _WANTED)
        self._bus = self._interface.GetCanBus().recv_bus
        self._parser, self._message = C_PiperParserV2(), PiperMessage()
        self._newest: dict[int, can.Message] = {}  # not yet decoded
        self._heard_s: dict[int, float] = {}
        self._stamp_ns: dict[int, int] = {}
        self._wrong = 0
        self._dead = ""  # what ended the reader
        self.enabled = False
        self.sent: tuple[tuple[float, np.ndarray], ...] = ()
        self._decoding = threading.Lock()
        self._closing = threading.Event()
        self._fresh = threading.Event()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ordering = threading.Lock()
        self._orders: dict[Callable[..., None], tuple[int, ...]] = {}  # by what sends them
        self._threads = [threading.Thread(target=work, name=f"piper {channel}", daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()
        if not self._wait(lambda: all(key in self._heard_s for key in _WANTED), timeout_s):
            missing = ", ".join(f"0x{key:X}" for key in _WANTED if key not in self._heard_s)
            self.close()
            hint = "is the arm on, its CAN cable in, and the bus at 1 Mbit/s?"
            raise DeviceError(f"piper on {channel}: nothing heard of {missing} within {timeout_s:g} s; {hint}", "device")
        self._fresh.clear()
        if not self._fresh.wait(stale_after_s):
            self.close()
            raise DeviceError(
                f"piper on {channel}: joint feedback comes more than {stale_after_s:g} s apart; is the bus overloaded?", "device"
            )

    # Measurements.

    def sample(self) -> Sample:
        """Returns the newest measurement, at most `stale_after_s` old. Raises StaleData ("link_lost")."""
        self._check_age()
        with self._decoding:
            message = self._message
            while self._newest:
                self._parser.DecodeMessage(self._newest.popitem()[1], message)
            joints, motors = message.arm_joint_feedback, [getattr(message, f"arm_high_spd_feedback_{i}") for i in range(1, 7)]
            return Sample(
                min(self._stamp_ns[key] for key in JOINTS),
                np.array([getattr(joints, f"joint_{i}") for i in range(1, 7)]) / _MILLIDEGREES,
                np.array([motor.motor_speed for motor in motors]) * 1e-3,
                np.array([motor.cal_effort() for motor in motors]) * 1e-3,
                message.gripper_feedback.grippers_angle * 1e-6,
                fault_of(message, self.enabled),
            )

    def _check_age(self) -> None:
        if self._dead:
            raise StaleData(f"piper on {self.channel}: {self._dead}; is the adapter still there?", "link_lost")
        age_s = self._age_s()
        if age_s > self._stale_after_s:
            # a process that was kept from running is not a dead link: let the reader go first
            self._fresh.clear()
            self._fresh.wait(_GRACE_S)
            age_s = self._age_s()
        if age_s > self._stale_after_s:
            unreadable = self._wrong + getattr(self._bus, "unreadable", 0)
            detail = f" ({unreadable} unreadable frames)" if unreadable else ""
            message = f"piper on {self.channel}: no joint feedback for {age_s:.3f} s, limit {self._stale_after_s:g} s{detail}"
            raise StaleData(f"{message}; is the arm on and the bus up?", "link_lost")
        if time.monotonic() - self._heard_s[STATUS] > _STATUS_STALE_S:
            raise StaleData(f"piper on {self.channel}: joints, but no status (0x2A1) for {_STATUS_STALE_S:g} s", "link_lost")

    def _age_s(self) -> float:
        return time.monotonic() - min(self._heard_s[key] for key in JOINTS)

    # Commands. They return at once; the writer sends them in their order, of several targets the newest.

    def move(self, position_rad: np.ndarray) -> None:
        """Sets the target [6] rad of the joints."""
        self.sent = (*self.sent[1 - _SENT :], (time.monotonic(), position_rad))
        self._order(self._send_target, tuple(np.rint(position_rad * _MILLIDEGREES).astype(int).tolist()))

    def grip(self, width_m: float, torque_nm: float) -> None:
        """Sets the opening and the torque of the gripper."""
        self._order(self._send_gripper, (round(width_m * 1e6), round(torque_nm * 1e3)))

    def enable(self, torque_nm: float, timeout_s: float) -> None:
        """Enables drives and gripper and holds where the arm is. Raises DeviceError that names the joints that do not come."""
        self.enabled = False
        asked_s = time.monotonic()
        while time.monotonic() < asked_s + timeout_s:
            self._jobs.put(lambda: self._interface.EnableArm(_ALL_MOTORS))
            if self._wait(lambda: self._heard_since(asked_s) and all(self._drives()), _RESEND_S):
                break
        if not all(states := self._drives()):
            off = ", ".join(str(i + 1) for i, on in enumerate(states) if not on)
            raise DeviceError(
                f"piper on {self.channel}: joint {off} not enabled within {timeout_s:g} s; is its supply on?", "motor_disabled"
            )
        sample = self.sample()
        width, torque = round(sample.gripper_width_m * 1e6), round(torque_nm * 1e3)
        self._jobs.put(lambda: self._interface.GripperCtrl(width, torque, _GRIP_CLEARED, 0))
        self.sent = ()  # as the arm forgets its target
        self.move(sample.position)
        self.enabled = True

    def clear_faults(self, torque_nm: float, timeout_s: float) -> None:
        """Clears joint errors; where that is not enough, and after an emergency stop, resets the arm (its drives lose power until enabled).

        Raises DeviceError when a fault stays.
        """
        self.enabled = False
        if self.sample().fault[0] != "estop":
            self._jobs.put(lambda: self._interface.JointConfig(_ALL_MOTORS, 0, 0, 0x7FFF, _CLEAR))
            self._wait(lambda: not self.sample().fault[0], timeout_s / 3)
        if self.sample().fault[0]:
            self._jobs.put(lambda: self._interface.EmergencyStop(_RESUME))
            self._jobs.put(lambda: self._interface.EnableArm(_ALL_MOTORS))
            self._wait(lambda: not self.sample().fault[0], timeout_s / 3)
        reason, text = self.sample().fault
        if reason:
            raise DeviceError(f"piper on {self.channel}: {text} stays; clear its cause, then recover again", reason)
        self.enable(torque_nm, timeout_s)

    def close(self) -> None:
        """Sends what waits, ends the threads and closes the bus. Idempotent."""
        self._jobs.put(None)
        self._threads[1].join(1.0)
        self._closing.set()
        self._threads[0].join(1.0)
        self._interface.DisconnectPort()

    def _heard_since(self, asked_s: float) -> bool:
        """Whether all drives have told their state after an order of `asked_s` can have reached them."""
        return min(self._heard_s[key] for key in SLOW) > asked_s + _ORDER_S

    def _drives(self) -> list[bool]:
        self.sample()
        return [bool(state & ENABLED) for state in drive_states(self._message)]

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not (met := condition()) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return met

    # The threads.

    def _order(self, send: Callable[..., None], values: tuple[int, ...]) -> None:
        """Has the writer call `send` with the newest values at its turn."""
        with self._ordering:
            if send not in self._orders:
                self._jobs.put(lambda: send(*self._taken(send)))
            self._orders[send] = values

    def _taken(self, send: Callable[..., None]) -> tuple[int, ...]:
        with self._ordering:
            return self._orders.pop(send)

    def _send_target(self, *millidegrees: int) -> None:
        # the mode goes with every target, as the vendor does it: a controller that was restarted is in standby
        self._interface.MotionCtrl_2(_CAN_MODE, _MOVE_J, self._speed, 0)
        self._interface.JointCtrl(*millidegrees)

    def _send_gripper(self, width: int, torque: int) -> None:
        self._interface.GripperCtrl(width, torque, _GRIP, 0)

    def _write(self) -> None:
        """The one thread that sends: the SDK's bus is not thread-safe. The SDK logs what it cannot send."""
        while (job := self._jobs.get()) is not None:
            if not self._dead:
                job()

    def _read(self) -> None:
        """Keeps the newest frame of each id; ends with the bus."""
        try:
            while not self._closing.is_set():
                message = self._bus.recv(0.1)
                while message is not None:
                    self._keep(message)
                    message = self._bus.recv(0)
                time.sleep(_DRAIN_PERIOD_S)  # one wake for all frames of a cycle
        except (can.CanError, OSError, ValueError) as error:  # ValueError: the bus was closed meanwhile
            self._dead = str(error) or type(error).__name__

    def _keep(self, message: can.Message) -> None:
        key = message.arbitration_id
        if key not in _WANTED:
            return
        if message.dlc != 8:
            self._wrong += 1
            return
        self._heard_s[key] = time.monotonic()
        self._stamp_ns[key] = round(message.timestamp * 1e9) if message.timestamp else time.time_ns()
        self._newest[key] = message
        if key == JOINTS[-1]:
            self._fresh.set()
