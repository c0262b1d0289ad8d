"""A simulated AgileX PiPer: the arm's end of the CAN bus, behind an slcan adapter on TCP. It sends what the arm sends, at its rates."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import numpy as np

from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.sim import piper_frames as frames
from vla_ros.sim.piper_controller import ESTOP, PiperController
from vla_ros.sim.plant import Plant

_log = logging.getLogger(__name__)
_SLOW_HZ = 40.0  # 0x261-6, and how often the end pose is worked out
_BACKLOG = 8
_LINE_MAX = 64  # characters; the longest slcan line has 27


class _Client:
    """One TCP connection to the adapter: `opened` by O or L; what it does not take at once waits, whole batches beyond that are lost."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.opened, self.text, self._rest = connection, False, "", b""

    def send(self, data: bytes) -> None:
        """Raises OSError when the connection is gone."""
        data = self._rest or data
        # the vendor's client never reads its second connection
        with contextlib.suppress(BlockingIOError):
            self._rest = data[self.socket.send(data) :]


class PiperBus:
    """Implements `plant.Firmware`.

    Args:
        plant: the simulated arm.
        options: the driver's; `can` is `socket://ADDRESS:PORT`.
        feedback_hz: how often joints, gripper, status and drives are sent.

    Faults: `silent` sends nothing, `slow` twice a second, `frozen` the same frames for ever, `flood` everything ten times, `garbage` broken
    slcan lines, `bad_frames` wrong lengths and foreign ids, `link_cut` closes the connections and takes none; `estop` (the button stays
    pressed), `joint_comm`, `brake`, `collision`, `limit`, `motor_disabled` are the controller's own, see `PiperController`.
    """

    FAULTS = ("silent", "slow", "frozen", "flood", "garbage", "bad_frames", "link_cut", *PiperController.FAULTS)

    def __init__(self, plant: Plant, options: Mapping[str, object], *, feedback_hz: float = 200.0) -> None:
        parts = urlsplit(str(options.get("can", "")))
        if parts.scheme != "socket" or not parts.hostname or not parts.port:
            raise ConfigError(f"can: {options.get('can')!r}, a simulated PiPer needs socket://ADDRESS:PORT")
        self.address = parts.hostname, parts.port
        self._plant, self._period_s = plant, 1.0 / feedback_hz
        self._slow_every = max(1, round(feedback_hz / _SLOW_HZ))
        self._controller = PiperController(plant)
        self._fault = ""
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._clients: list[_Client] = []
        self._cycle, self._batch, self._pose = 0, b"", b""
        self._random = np.random.default_rng(0)
        self._thread = threading.Thread(target=self._serve, name=f"piper bus {parts.port}", daemon=True)

    def start(self) -> None:
        self._listener = self._listen()
        self._thread.start()

    def step(self, dt_s: float) -> None:
        self._controller.step(dt_s)

    def rest(self) -> None:
        self._controller.rest()

    def inject(self, fault: str) -> None:
        if fault not in self.FAULTS:
            raise ConfigError(f"no fault '{fault}'; valid: {', '.join(self.FAULTS)}")
        if fault in PiperController.FAULTS:
            self._controller.inject(fault)
        else:
            self._fault = fault

    def clear(self) -> None:
        self._fault = ""
        self._controller.clear()

    def press_estop(self) -> None:
        """A short press: latched, to be resumed over the bus."""
        self._controller.latch(ESTOP)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _listen(self) -> socket.socket:
        try:
            return socket.create_server(self.address, backlog=_BACKLOG)
        except OSError as error:
            raise DeviceError(f"simulated CAN adapter: {self.address[0]}:{self.address[1]}: {error}", "device") from error

    # The thread: sends a batch every cycle, takes what comes in between.

    def _serve(self) -> None:
        due_s = time.monotonic()
        try:
            while not self._closing.is_set():
                due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
                while (rest_s := due_s - time.monotonic()) > 0:
                    self._take(rest_s)
                self._plug()
                if self._clients and self._listener is not None:
                    self._publish()
        finally:
            self._unplug()

    def _plug(self) -> None:
        """Closes the port while the link is cut, and opens it again afterwards."""
        if self._fault == "link_cut" and self._listener is not None:
            self._unplug()
        elif self._fault != "link_cut" and self._listener is None:
            try:
                self._listener = self._listen()
            except DeviceError as error:
                _log.warning(str(error))

    def _unplug(self) -> None:
        for client in self._clients:
            client.socket.close()
        self._clients = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _take(self, timeout_s: float) -> None:
        """Accepts connections and obeys commands for at most `timeout_s`."""
        sockets = [client.socket for client in self._clients]
        if self._listener is not None:
            sockets.append(self._listener)
        ready = select.select(sockets, [], [], timeout_s)[0]
        if self._listener in ready:
            self._clients.append(_Client(self._listener.accept()[0]))
        for client in [client for client in self._clients if client.socket in ready]:
            try:
                data = client.socket.recv(65536)
                if not data:
                    raise ConnectionResetError
                self._obey(client, data)
            except OSError:
                self._drop(client)

    def _drop(self, client: _Client) -> None:
        client.socket.close()
        if client in self._clients:
            self._clients.remove(client)

    def _obey(self, client: _Client, data: bytes) -> None:
        """What an slcan adapter does with its lines: S sets the bit rate, O opens, C closes, t sends; an error is answered with BEL."""
        *lines, client.text = (client.text + data.decode("ascii", "replace")).split("\r")
        client.text = client.text[-_LINE_MAX:]
        answer = ""
        for text in filter(None, lines):
            answer += self._answer(client, text)
        if answer:
            client.send(answer.encode())

    def _answer(self, client: _Client, text: str) -> str:
        if text[0] == "t":
            frame = frames.parse(text)
            if frame is None or not client.opened:
                return "\a"
            if len(frame[1]) == 8:
                self._send(self._controller.obey(*frame).encode())
            return ""
        if text[0] in "OLC":
            client.opened = text[0] != "C"
        return {"V": "V1013\r", "N": "NSIM0\r"}.get(text[0], "\r" if text[0] in "OLCSY" else "\a")

    def _publish(self) -> None:
        self._cycle += 1
        period = round(0.5 / self._period_s) if self._fault == "slow" else 1
        if self._cycle % period:
            return
        if self._fault != "frozen" or not self._batch:
            self._batch = self._frames(self._plant.measure())
        batch = {"garbage": self._garbage, "bad_frames": self._bad_frames}.get(self._fault, lambda: self._batch)()
        self._send(batch * 10 if self._fault == "flood" else batch)

    def _send(self, batch: bytes) -> None:
        """Everybody on the bus hears the arm."""
        if not batch or self._fault == "silent":
            return
        for client in [client for client in self._clients if client.opened]:
            try:
                client.send(batch)
            except OSError:
                self._drop(client)

    def _frames(self, measured) -> bytes:
        slow = b""
        if self._cycle % self._slow_every == 0 or not self._pose:
            self._pose = frames.end_pose(measured.position)
            slow = frames.slow(self._controller.drives, measured.effort)
        controller = self._controller
        return frames.fast(measured, controller.status, self._pose, controller.gripper_status, controller.gripper_torque_nm) + slow

    def _garbage(self) -> bytes:
        """The batch with every line damaged: cut short, without its end, or with characters that are no hex digits."""
        lines = self._batch.split(b"\r")
        return b"".join(item[: self._random.integers(1, 20)] + (b"", b"\r", b"\xff#\r")[i % 3] for i, item in enumerate(lines) if item)

    def _bad_frames(self) -> bytes:
        """The ids of the arm with wrong lengths, and ids that are not the arm's."""
        wrong = [frames.line(can_id, self._random.bytes(int(self._random.integers(0, 8)))) for can_id in range(0x2A1, 0x2A9)]
        foreign = [frames.line(int(self._random.integers(0x300, 0x400)), struct.pack(">q", self._cycle)) for _ in range(6)]
        return "".join(wrong + foreign).encode()
