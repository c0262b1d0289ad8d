"""Kortex frames: the bit fields of the header, and how frames travel. TCP 10000: magic, u32 length, frame; UDP 10001: the bare frame.

Bit fields and magic: Kinova's Python client (BitMaskTools, TCPTransport).
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Protocol

from vla_ros.robots.kortex.messages import DecodeError, new, parse

MAGIC = b"\x07xEtRoK\x07"
TCP_PORT, UDP_PORT = 10000, 10001
REQUEST, RESPONSE, NOTIFICATION = 1, 3, 5
_VERSION = 1
_PREFIX_BYTES = len(MAGIC) + 4
# the base's own limit is 64 KiB; a longer frame is a stream that lost its step
_FRAME_BYTES_MAX = 65535
_SEND_TIMEOUT_S = 0.5  # a full buffer: the base takes nothing any more


class WireError(Exception):
    """What came is no Kortex frame, or the connection ended."""


@dataclass(frozen=True)
class Reply:
    """What the base answered: `error` and `sub_error` are 0 when the call succeeded."""

    kind: int
    session: int
    message: int
    service: int
    function: int
    error: int
    sub_error: int
    payload: bytes


def pack_request(service: int, function: int, session: int, message: int, payload: bytes) -> bytes:
    """Returns the frame of a request; `session` is 0 until the base has given one, `message` counts requests in 16 bits."""
    header = new(
        "Header",
        frame_info=_VERSION << 28 | REQUEST << 24,
        message_info=(session & 0xFFFF) << 16 | message & 0xFFFF,
        service_info=_VERSION << 28 | (service & 0xFFF) << 16 | function & 0xFFFF,
        payload_info=len(payload) & 0xFFFFFF,
    )
    return new("Frame", header=header, payload=payload).SerializeToString()


def unpack(data: bytes) -> Reply:
    """Reads a frame. Raises WireError: not protobuf, another version, or a payload of another length than its header says."""
    try:
        frame = parse("Frame", data)
    except DecodeError as error:
        raise WireError(f"{len(data)} bytes that are no Kortex frame ({error})") from None
    header, payload = frame.header, frame.payload
    if header.frame_info >> 28 != _VERSION:
        raise WireError(f"header version {header.frame_info >> 28}, expected {_VERSION}")
    if header.payload_info & 0xFFFFFF != len(payload):
        raise WireError(f"header says {header.payload_info & 0xFFFFFF} bytes of payload, there are {len(payload)}")
    return Reply(
        kind=header.frame_info >> 24 & 0xF,
        session=header.message_info >> 16,
        message=header.message_info & 0xFFFF,
        service=header.service_info >> 16 & 0xFFF,
        function=header.service_info & 0xFFFF,
        error=header.frame_info >> 12 & 0xF,
        sub_error=header.frame_info & 0xFFF,
        payload=payload,
    )


class Transport(Protocol):
    """Carries frames both ways. One thread."""

    def send(self, frame: bytes) -> None:
        """Raises OSError."""

    def receive(self, deadline_s: float) -> bytes:
        """Returns the next frame. Raises TimeoutError at the time.monotonic() `deadline_s`, WireError, OSError."""

    def close(self) -> None:
        """Also ends a `receive` of another thread. Idempotent."""


class TcpTransport:
    """A connection to the base. Raises OSError when there is none."""

    def __init__(self, address: str, port: int, timeout_s: float) -> None:
        self._socket = socket.create_connection((address, port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, frame: bytes) -> None:
        self._socket.settimeout(_SEND_TIMEOUT_S)
        self._socket.sendall(MAGIC + len(frame).to_bytes(4, "big") + frame)

    def receive(self, deadline_s: float) -> bytes:
        prefix = self._take(_PREFIX_BYTES, deadline_s, keep=True)
        if not prefix.startswith(MAGIC):
            raise WireError(f"{prefix[: len(MAGIC)].hex()} where a frame begins, expected {MAGIC.hex()}")
        length = int.from_bytes(prefix[len(MAGIC) :], "big")
        if length > _FRAME_BYTES_MAX:
            raise WireError(f"a frame of {length} bytes, limit {_FRAME_BYTES_MAX}")
        return self._take(_PREFIX_BYTES + length, deadline_s)[_PREFIX_BYTES:]

    def _take(self, count: int, deadline_s: float, keep: bool = False) -> bytes:
        """Returns the next `count` bytes; what came too early for the deadline stays for the next time."""
        while len(self._buffer) < count:
            self._socket.settimeout(max(1e-4, deadline_s - time.monotonic()))
            data = self._socket.recv(65536)
            if not data:
                raise WireError("the base closed the connection")
            self._buffer += data
        taken = self._buffer[:count]
        self._buffer = self._buffer if keep else self._buffer[count:]
        return taken

    def close(self) -> None:
        _shut(self._socket)


class UdpTransport:
    """Datagrams to and from the base; a socket error tells that nobody listens there."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((address, port))

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, deadline_s: float) -> bytes:
        self._socket.settimeout(max(1e-4, deadline_s - time.monotonic()))
        return self._socket.recv(_FRAME_BYTES_MAX)

    def close(self) -> None:
        _shut(self._socket)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
