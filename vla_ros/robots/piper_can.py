"""The CAN bus of a PiPer: a SocketCAN interface, or an slcan adapter on a serial port or on TCP."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from vla_ros.core.errors import DeviceError, NotInstalled

try:
    import can
    from can.interfaces.slcan import slcanBus
    from piper_sdk import C_PiperInterface_V2
    from piper_sdk.piper_msgs.msg_v2 import PiperMessage
    from piper_sdk.protocol.protocol_v2 import C_PiperParserV2
except ModuleNotFoundError as error:
    raise NotInstalled("the piper driver needs piper_sdk and python-can: run `make setup`, or pip install piper_sdk pyserial") from error

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["C_PiperParserV2", "PiperMessage", "can", "open_interface"]
BITRATE = 1_000_000
_WRITE_TIMEOUT_S = 0.2
_KEPT = 4096  # bytes, some 50 ms of frames: a reader that fell behind must not take old frames for new ones
_SYSFS = Path("/sys/class/net")


class StreamSlcan(slcanBus):
    """python-can's slcan bus, but it reads what is there in one system call instead of byte by byte, and outlives unreadable lines.

    `unreadable` counts those. Opening takes no 2 s: the adapters here need no reset.
    """

    def __init__(self, channel: str) -> None:
        self.unreadable = 0
        self._lines: deque[bytes] = deque()
        self._tail = b""
        super().__init__(channel, bitrate=BITRATE, sleep_after_open=0)
        if channel.startswith("socket://"):
            # four small frames a command: without it the third waits for the answer to the first
            with socket.socket(fileno=os.dup(self.fileno())) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        super().send(msg, _WRITE_TIMEOUT_S if timeout is None else timeout)

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if not self._lines:
            self._fill(timeout)
        while self._lines:
            line = self._lines.popleft()
            message = _message(line)
            if message is not None:
                return message, False
            self.unreadable += line not in (b"", b"z", b"Z")  # the adapter's own answers
        return None, False

    def _fill(self, timeout: float | None) -> None:
        if not select.select([self.fileno()], [], [], timeout)[0]:
            return
        data = self._tail
        with contextlib.suppress(BlockingIOError):
            while True:
                more = os.read(self.fileno(), 65536)
                if not more:
                    raise can.CanOperationError("the slcan adapter closed the connection")
                data = (data + more)[-_KEPT:]
        *lines, self._tail = data.replace(b"\a", b"\r").split(b"\r")
        if len(data) == _KEPT:
            lines = lines[1:]  # cut somewhere
        self._lines.extend(lines)


def _message(line: bytes) -> can.Message | None:
    """Returns the standard data frame of an slcan line, None when it is none."""
    if not line.startswith(b"t"):
        return None
    try:
        can_id, length, data = int(line[1:4], 16), int(line[4:5]), bytes.fromhex(line[5:].decode("ascii"))
    except ValueError:
        return None
    if len(data) != length or can_id > 0x7FF:
        return None
    return can.Message(arbitration_id=can_id, data=data, is_extended_id=False)


def open_interface(channel: str, wanted: Iterable[int]) -> C_PiperInterface_V2:
    """Returns the SDK's interface on an open bus, without threads. SocketCAN drops all ids but those `wanted` in the kernel.

    Raises:
        DeviceError: no such interface or adapter, with the command that mends it.
    """
    interface = C_PiperInterface_V2(channel, judge_flag=False, can_auto_init=False)
    if channel.startswith(("socket://", "/dev/")):
        # the SDK opens a bus of python-can by name, twice; this gives it ours instead, once for both directions
        interface.CreateCanBus(channel, bustype="virtual", expected_bitrate=BITRATE, judge_flag=False)
        port = interface.GetCanBus()
        port.Close()
        try:
            port.recv_bus = port.send_bus = StreamSlcan(channel)
        except (can.CanError, OSError) as error:
            raise DeviceError(f"piper on {channel}: {error}; is the adapter there, and used by nobody else?", "device") from error
    else:
        _check_socketcan(channel)
        try:
            interface.CreateCanBus(channel, bustype="socketcan", expected_bitrate=BITRATE, judge_flag=False)
        except ConnectionError as error:
            raise DeviceError(f"piper on {channel}: {error}; see docs/robots/piper.md", "device") from error
        port = interface.GetCanBus()
        if port.recv_bus is None or port.send_bus is None:
            raise DeviceError(f"piper on {channel}: the interface cannot be opened; see docs/robots/piper.md", "device")
        port.recv_bus.set_filters([{"can_id": can_id, "can_mask": 0x7FF} for can_id in wanted])
        port.send_bus.set_filters([{"can_id": 0x7FF, "can_mask": 0x7FF}])  # nobody reads there
    interface.ConnectPort(piper_init=False, start_thread=False)
    return interface


def _check_socketcan(channel: str) -> None:
    state = _SYSFS / channel / "operstate"
    up = f"sudo ip link set {channel} up type can bitrate {BITRATE}"
    if not state.is_file():
        names = ", ".join(sorted(path.name for path in _SYSFS.glob("*can*"))) or "none"
        raise DeviceError(f"piper: no CAN interface {channel} (there is: {names}); plug the adapter in, then {up}", "device")
    if state.read_text().strip() == "down":
        raise DeviceError(f"piper: CAN interface {channel} is down; {up}", "device")
