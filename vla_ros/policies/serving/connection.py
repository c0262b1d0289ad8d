"""One connection to an openpi server, with a limit on every wait."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from vla_ros.core.errors import DataError, NotInstalled, PolicyError
from vla_ros.policies.serving.wire import unpack

try:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:
    raise NotInstalled("policies over a network need websockets: pip install msgpack websockets (or `make setup`)") from error

_ANSWER_MAX = 64 * 2**20
_GOODBYE_S = 0.2
_SHOWN = 400


class Connection:
    """Asks a server one question at a time; connects when there is something to ask. Not for several threads.

    `expect` is called with what the server says about itself on each connection; it raises PolicyError for one that must not be asked.

    Args:
        server: `host:port`, `//host:port`, or a whole `ws://` or `wss://` address.
        timeout_s: longest wait for an answer, connecting included.
        authorization: the header of that name, "" for none.

    Raises:
        PolicyError: no such address.
    """

    def __init__(self, server: str, timeout_s: float, authorization: str = "") -> None:
        self.address = _address(server)
        self._timeout_s = timeout_s
        self._headers = {"Authorization": authorization} if authorization else None
        self._socket: ClientConnection | None = None
        self._open = contextlib.ExitStack()
        self._metadata: Mapping[str, object] = {}
        self.expect: Callable[[Mapping[str, object]], None] = lambda metadata: None

    def metadata(self) -> Mapping[str, object]:
        """Connects if need be; returns what the server said about itself. Raises PolicyError."""
        self._within(time.monotonic() + self._timeout_s, None)
        return self._metadata

    def ask(self, message: bytes) -> Mapping[str, object]:
        """Returns the server's answer. Raises PolicyError (reason "server"): gone, slow, an error, nonsense; the connection is dropped."""
        return self._within(time.monotonic() + self._timeout_s, message)

    def close(self) -> None:
        """Says goodbye. Idempotent."""
        self._socket = None
        with contextlib.suppress(OSError, WebSocketException):
            self._open.close()

    def _within(self, deadline_s: float, message: bytes | None) -> Mapping[str, object]:
        """One exchange. After a failure the connection goes: a late answer must never be taken for the next one's."""
        try:
            if self._socket is None:
                self._connect(deadline_s)
            if message is None:
                return self._metadata
            self._socket.send(message)
            return self._receive(deadline_s)
        except TimeoutError:
            problem = f"no answer within {self._timeout_s:g} s"
        except BlockingIOError:
            problem = f"it did not read the observation within {self._timeout_s:g} s"
        except (OSError, WebSocketException) as error:
            problem = f"no connection: {error}"
        except PolicyError as error:
            problem = str(error)
        self._drop()
        raise PolicyError(problem, "server")

    def _connect(self, deadline_s: float) -> None:
        # No pings: a server that computes in its event loop, as openpi's does, cannot answer them; the time-outs suffice.
        pending = connect(
            self.address, compression=None, max_size=_ANSWER_MAX, additional_headers=self._headers, ping_interval=None, proxy=None,
            open_timeout=max(0.001, deadline_s - time.monotonic()), close_timeout=_GOODBYE_S,
        )  # fmt: skip
        self._socket = self._open.enter_context(pending)
        # `send` has no time-out of its own; a server that stops reading would block it for ever.
        limit = struct.pack("ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
        self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._metadata = self._receive(deadline_s)
        self.expect(self._metadata)

    def _receive(self, deadline_s: float) -> Mapping[str, object]:
        data = self._socket.recv(timeout=max(0.0, deadline_s - time.monotonic()))
        if isinstance(data, str):
            raise PolicyError(f"the server reports: {_last_line(data)}")
        try:
            value = unpack(data)
        except DataError as error:
            raise PolicyError(f"the server sent nonsense: {error}") from None
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise PolicyError(f"the server sent a {type(value).__name__}, expected a mapping with text keys")
        return value

    def _drop(self) -> None:
        """Ends the connection at once, without a goodbye that nobody may answer."""
        connection, self._socket = self._socket, None
        self._open.pop_all()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                connection.socket.close()


def _address(server: str) -> str:
    text = str(server).strip()
    address = text if "://" in text else f"ws://{text.removeprefix('//')}"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise PolicyError(f"server {server!r}: {error}; expected host:port, as in openpi://127.0.0.1:8000") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or (port is None and parts.scheme == "ws"):
        raise PolicyError(f"server {server!r}: expected host:port, as in openpi://127.0.0.1:8000, or a ws:// or wss:// address")
    return address


def _last_line(text: str) -> str:
    """Of a traceback, what went wrong."""
    lines = [line.strip() for line in text[-10_000:].splitlines() if line.strip()]
    return (lines[-1] if lines else "(nothing)")[:_SHOWN]
