"""One Dynamixel Protocol 2.0 bus on a serial port, through dynamixel-sdk. Registers are those of the X series (Robotis e-manual).

Not thread-safe: one thread at a time owns a bus.
"""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vla_ros.core.errors import ConfigError, DeviceError, NotInstalled, StaleData

try:
    from dynamixel_sdk import COMM_RX_CORRUPT, COMM_RX_TIMEOUT, COMM_SUCCESS, PortHandler, Protocol2PacketHandler
except ModuleNotFoundError as error:
    raise NotInstalled("Dynamixel servos need dynamixel-sdk: pip install dynamixel-sdk (or `make setup`)") from error


class Register(NamedTuple):
    """A value in a servo's control table; `length` in bytes."""

    address: int
    length: int
    signed: bool = False


RETURN_DELAY = Register(9, 1)  # 2 us
DRIVE_MODE = Register(10, 1)
OPERATING_MODE = Register(11, 1)
SECONDARY_ID = Register(12, 1)
HOMING_OFFSET = Register(20, 4, True)
CURRENT_LIMIT = Register(38, 2)
MAX_POSITION = Register(48, 4)
MIN_POSITION = Register(52, 4)
TORQUE_ENABLE = Register(64, 1)
HARDWARE_ERROR = Register(70, 1)
POSITION_D_GAIN, POSITION_I_GAIN, POSITION_P_GAIN = Register(80, 2), Register(82, 2), Register(84, 2)
GOAL_CURRENT = Register(102, 2, True)
PROFILE_ACCELERATION, PROFILE_VELOCITY = Register(108, 4), Register(112, 4)
GOAL_POSITION = Register(116, 4, True)
REALTIME_TICK = Register(120, 2)  # ms, 0 .. 32767
PRESENT_CURRENT = Register(126, 2, True)
PRESENT_VELOCITY = Register(128, 4, True)
PRESENT_POSITION = Register(132, 4, True)

TICKS_PER_TURN = 4096
VELOCITY_RAD_S = 0.229 * 2.0 * 3.141592653589793 / 60.0  # of one unit
CURRENT_A = 2.69e-3  # of one unit
HARDWARE_FAULTS = {0x01: "voltage", 0x04: "overheating", 0x08: "encoder", 0x10: "electrical_shock", 0x20: "overload"}
_STATUS_ERRORS = {
    1: "the instruction failed",
    2: "unknown instruction",
    3: "it received a wrong checksum",
    4: "value out of range",
    5: "wrong data length",
    6: "value beyond the servo's limit",
    7: "access denied (read-only, or EEPROM while torque is on)",
}
_COMMUNICATION = {COMM_RX_TIMEOUT: "no answer", COMM_RX_CORRUPT: "corrupt answer"}
_ALERT = 0x80


def hardware_faults(status: int) -> tuple[str, ...]:
    """The names of the bits of HARDWARE_ERROR."""
    return tuple(name for bit, name in HARDWARE_FAULTS.items() if status & bit) or ((f"hardware_error_{status}",) if status else ())


def latency_timer_ms(port: str) -> int | None:
    """How long an FTDI adapter waits for more bytes before it passes on what it has; None for other ports."""
    path = Path("/sys/bus/usb-serial/devices") / Path(os.path.realpath(port)).name / "latency_timer"
    return int(path.read_text()) if path.is_file() else None


def value_of(data: Sequence[int], start: int, register: Register) -> int:
    """Returns the value of `register` in a block of the control table that begins at address `start`."""
    at = register.address - start
    return int.from_bytes(bytes(data[at : at + register.length]), "little", signed=register.signed)


@dataclass
class SyncReply:
    """`data`: what each servo answered; `alert`: servos with a hardware error; `silent`: the first without a good answer, and why.

    Servos answer in turn: those after a silent one do not.
    """

    data: dict[int, bytes] = field(default_factory=dict)
    alert: list[int] = field(default_factory=list)
    silent: int | None = None
    failure: str = ""


class _Port(PortHandler):
    """The SDK's port, but it sleeps while it waits, on the steady clock, and for as long as it is told."""

    grace_s = 0.0

    def getCurrentTime(self) -> float:
        return time.monotonic() * 1e3

    def setPacketTimeout(self, packet_length: int) -> None:
        self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + self.grace_s * 1e3)

    def readPort(self, length: int) -> bytes:
        left_s = (self.packet_timeout - self.getTimeSinceStart()) * 1e-3
        if left_s > 0 and length > self.ser.in_waiting:
            select.select([self.ser.fd], [], [], left_s)
        return self.ser.read(length)


class DynamixelBus:
    """Not open until `open`.

    Args:
        port: serial device.
        baud: of all servos on it.
        timeout_s: longest wait for an answer beyond its time on the wire (FTDI adapters add their latency timer, 16 ms unless set).
        attempts: how often `read`, `write`, `ping` and `reboot` try.

    Raises (all methods):
        StaleData: "link_lost": no (good) answer from a servo, or the port is gone. DeviceError: the servo refuses, with its reason.
    """

    def __init__(self, port: str, *, baud: int = 1_000_000, timeout_s: float = 0.02, attempts: int = 3) -> None:
        self.port, self._timeout_s, self._attempts = port, timeout_s, attempts
        self._handler, self._packets = _Port(port), Protocol2PacketHandler()
        self._handler.grace_s = timeout_s
        if self._handler.getCFlagBaud(baud) <= 0:
            raise ConfigError(f"{port}: {baud} baud; dynamixel-sdk takes 57600, 115200, 1000000, 2000000, 3000000, 4000000 and a few more")
        self._handler.baudrate = baud

    def open(self) -> None:
        """Raises DeviceError with the fix."""
        try:
            self._handler.openPort()
        except (OSError, termios.error) as error:
            raise DeviceError(
                f"{self.port}: cannot be opened ({error}); is the adapter plugged in, the arm's udev rule installed,"
                " and the user in group dialout?",
                "device",
            ) from error

    def close(self) -> None:
        """Idempotent."""
        if self._handler.is_open:
            self._handler.closePort()

    def ping(self, servo: int) -> int:
        """Returns the model number."""
        return self._tried(servo, "ping", lambda: self._packets.ping(self._handler, servo))[0]

    def reboot(self, servo: int) -> None:
        """Restarts a servo: its torque goes off, its hardware error is cleared, it answers again after some 100 ms."""
        self._tried(servo, "reboot", lambda: (None, *self._packets.reboot(self._handler, servo)))

    def read(self, servo: int, register: Register) -> int:
        return value_of(self.read_block(servo, register.address, register.length), register.address, register)

    def read_block(self, servo: int, address: int, length: int) -> bytes:
        """Returns `length` bytes of the control table."""

        def once() -> tuple[bytes, int, int]:
            result = self._packets.readTx(self._handler, servo, address, length)
            return self._receive(servo, length) if result == COMM_SUCCESS else (b"", result, 0)

        return self._tried(servo, f"read of {address}", once)[0]

    def write(self, servo: int, register: Register, value: int) -> None:
        data = list(int(value).to_bytes(register.length, "little", signed=value < 0))

        def once() -> tuple[bytes, int, int]:
            result = self._packets.writeTxOnly(self._handler, servo, register.address, register.length, data)
            self._handler.setPacketTimeout(11)
            return self._receive(servo, 0) if result == COMM_SUCCESS else (b"", result, 0)

        self._tried(servo, f"write of {value} to {register.address}", once)

    def sync_read(self, servos: Sequence[int], address: int, length: int) -> SyncReply:
        """Reads a block of all servos in one transaction; raises StaleData only when the port is gone."""
        reply = SyncReply()
        with self._guarded():
            result = self._packets.syncReadTx(self._handler, address, length, list(servos), len(servos), False)
            for servo in servos:
                data, error = b"", 0
                if result == COMM_SUCCESS:
                    data, result, error = self._receive(servo, length)
                if result != COMM_SUCCESS or error & ~_ALERT:
                    reply.silent = servo
                    reply.failure = _COMMUNICATION.get(result) or _STATUS_ERRORS.get(error & ~_ALERT, f"code {result}, error {error}")
                    break
                reply.data[servo] = data
                if error & _ALERT:
                    reply.alert.append(servo)
        return reply

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """Writes one register of several servos in one packet, which none of them answers."""
        data = [b for servo, value in values.items() for b in (servo, *int(value).to_bytes(register.length, "little", signed=value < 0))]
        with self._guarded():
            result = self._packets.syncWriteTxOnly(self._handler, register.address, register.length, data, len(data))
        if result != COMM_SUCCESS:
            raise StaleData(f"{self.port}: cannot send ({_COMMUNICATION.get(result, f'code {result}')})", "link_lost")

    def _receive(self, servo: int, length: int) -> tuple[bytes, int, int]:
        """Waits for an answer with `length` bytes: data, communication result, status error. The SDK would cut a longer one."""
        while True:
            answer, result = self._packets.rxPacket(self._handler, False)
            if result != COMM_SUCCESS:
                return b"", result, 0
            size, error = answer[5] + (answer[6] << 8) - 4, answer[8]
            # anything else is a late answer to an earlier question
            if answer[4] == servo and (size == length or (size == 0 and error & ~_ALERT)):
                return bytes(answer[9 : 9 + size]), result, error

    def _tried(self, servo: int, what: str, once) -> tuple:
        """Runs a transaction that returns (value, communication result, status error) until it succeeds."""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._timeout_s)  # what still comes in belongs to the last attempt
            with self._guarded():
                value, result, error = once()
            if result == COMM_SUCCESS:
                break
        else:
            meaning = _COMMUNICATION.get(result, f"code {result}")
            message = f"{self.port}: servo {servo}: {what}: {meaning} in {self._attempts} attempts; are power and cables connected?"
            raise StaleData(message, "link_lost")
        if error & ~_ALERT:
            raise DeviceError(f"{self.port}: servo {servo}: {what}: {_STATUS_ERRORS.get(error & ~_ALERT, f'error {error}')}", "device")
        return value, error

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What pyserial and termios raise when the adapter is unplugged, as StaleData."""
        if not self._handler.is_open:
            raise StaleData(f"{self.port}: not open", "link_lost")
        try:
            yield
        except (OSError, termios.error) as error:
            raise StaleData(f"{self.port}: the port is gone ({error}); is the adapter unplugged?", "link_lost") from error
        finally:
            self._handler.is_using = False
