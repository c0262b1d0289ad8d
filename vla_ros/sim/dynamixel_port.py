"""The adapter's end of a simulated serial port: a pseudo-terminal behind a symbolic link."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import threading
import tty
from pathlib import Path

from vla_ros.core.errors import DeviceError

_BAUD = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()}
_SPEED = 5  # place of the output speed in what tcgetattr returns


class PtyPort:
    """`name` is where hosts open it. Any thread may call it; one waits in `read`.

    Raises:
        DeviceError: another process of this machine serves `name`, or it is a file.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(name)
        self._lock = threading.Lock()
        self._fds: tuple[int, int] | None = None  # ours and the host's end, which must stay open while no host has it
        self._wake_read, self._wake_write = os.pipe()
        # a lock that ends with this process: a link left behind by one that was killed may be replaced, that of a living one not
        self._claim = socket.socket(socket.AF_UNIX)
        try:
            self._claim.bind(f"\0vla_ros{Path(name).absolute()}")
        except OSError as error:
            self._release()
            raise DeviceError(f"{name}: another simulation serves this port; change simulation.address in the rig", "device") from error
        if self._path.exists() and not self._path.is_symlink():
            self._release()
            raise DeviceError(f"{name}: there is a file of this name; a simulated port makes a link there, choose another", "device")

    def plug(self) -> None:
        """Makes the port appear."""
        with self._lock:
            if self._fds is None:
                master, slave = os.openpty()
                tty.setraw(slave)
                os.set_blocking(master, False)
                self._path.unlink(missing_ok=True)
                self._path.symlink_to(os.ttyname(slave))
                self._fds = master, slave
        os.write(self._wake_write, b"x")

    def unplug(self) -> None:
        """Makes it disappear under its host."""
        with self._lock:
            fds, self._fds = self._fds, None
            if fds is not None:
                self._path.unlink(missing_ok=True)
                for fd in fds:
                    os.close(fd)
        self.wake()

    def close(self) -> None:
        """For good; nobody may wait in `read` any more."""
        self.unplug()
        self._release()

    def wake(self) -> None:
        """Lets `read` return."""
        os.write(self._wake_write, b"x")

    def read(self) -> bytes:
        """Waits for bytes of the host; b"" when woken."""
        with self._lock:
            fds = self._fds
        ready, _, _ = select.select([self._wake_read, *(fds[:1] if fds else ())], [], [])
        if self._wake_read in ready:
            os.read(self._wake_read, 64)
            return b""
        with self._lock:
            if self._fds is not fds:
                return b""
            try:
                return os.read(fds[0], 4096)
            except BlockingIOError:
                return b""

    def write(self, data: bytes) -> None:
        """What the host does not take is lost, as on a real one."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._fds is not None:
                os.write(self._fds[0], data)

    def baud(self) -> int:
        """The rate that the host has set; 0 when unplugged."""
        with self._lock:
            return _BAUD.get(termios.tcgetattr(self._fds[0])[_SPEED], 0) if self._fds else 0

    def _release(self) -> None:
        self._claim.close()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
