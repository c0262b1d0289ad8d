"""The sockets of a simulated base: TCP with its magic and length, UDP bare; and what can go wrong on the way."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

from vla_ros.core.errors import DeviceError

_MAGIC = b"\x07xEtRoK\x07"
_FRAME_BYTES_MAX = 65535
_SLOW_S = 0.3
# frame, transport -> answer; None: no answer
Handler = Callable[[bytes, str], bytes | None]


class KortexServer:
    """Answers every frame with what `handle` returns. Open from `open` to `cut` or `close`.

    `spoil` is one of SPOILS while something is wrong with the answers, else "".
    """

    SPOILS = ("silent", "garbage", "bad_length", "truncated", "slow")

    def __init__(self, address: str, ports: tuple[int, int], handle: Handler) -> None:
        self._address, self._ports, self._handle = address, ports, handle
        self.spoil = ""
        self._noise = random.Random(0)
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def open(self) -> None:
        """Raises DeviceError when an address is taken."""
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((self._address, self._ports[0]))
            tcp.listen()
            udp.bind((self._address, self._ports[1]))
        except OSError as error:
            tcp.close()
            udp.close()
            where = f"{self._address}, TCP {self._ports[0]} and UDP {self._ports[1]}"
            raise DeviceError(f"simulated Kinova at {where}: {error}; does another simulation run?", "device") from error
        with self._lock:
            self._sockets = [tcp, udp]
        for work, sock in ((self._accept, tcp), (self._datagrams, udp)):
            threading.Thread(target=work, args=(sock,), name=f"kortex {self._address}", daemon=True).start()

    def cut(self) -> None:
        """Closes every connection and takes no more. Idempotent."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):  # a listening or datagram socket has nobody to tell
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    close = cut

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while True:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    if listener not in self._sockets:
                        client.close()
                        return
                    self._sockets.append(client)
                threading.Thread(target=self._stream, args=(client,), name=f"kortex {self._address}", daemon=True).start()

    def _stream(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):  # the client or `cut` closed it
            while True:
                prefix = stream.read(len(_MAGIC) + 4)
                length = int.from_bytes(prefix[len(_MAGIC) :], "big")
                if not prefix.startswith(_MAGIC) or length > _FRAME_BYTES_MAX:
                    break  # lost its step: nothing that follows can be read
                reply = self._handle(stream.read(length), "tcp")
                if reply is not None:
                    client.sendall(self._spoiled(_MAGIC + len(reply).to_bytes(4, "big"), reply))
        with self._lock:
            if client in self._sockets:
                self._sockets.remove(client)

    def _datagrams(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while True:
                frame, client = sock.recvfrom(_FRAME_BYTES_MAX)
                if client is None:
                    return  # cut
                reply = self._handle(frame, "udp")
                if reply is not None and (data := self._spoiled(b"", reply)):
                    sock.sendto(data, client)

    def _spoiled(self, prefix: bytes, reply: bytes) -> bytes:
        """The bytes that go out."""
        match self.spoil:
            case "silent":
                return b""
            case "garbage":
                return self._noise.randbytes(len(prefix) + len(reply))
            case "bad_length":
                # far too long on TCP; on UDP another payload than the header counts
                return prefix[:-4] + b"\x7f\xff\xff\xff" + reply if prefix else reply + b"\x12\x01\x00"
            case "truncated":
                return prefix + reply[: len(reply) // 2]
            case "slow":
                time.sleep(_SLOW_S)
        return prefix + reply
