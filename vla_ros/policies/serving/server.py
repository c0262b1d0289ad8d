"""Answers openpi's clients with one of our policies."""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vla_ros.core.errors import ConfigError, DeviceError, NotInstalled, PolicyError, VlaError
from vla_ros.core.interfaces import Policy
from vla_ros.core.types import Inference
from vla_ros.policies.serving.batching import Batching
from vla_ros.policies.serving.messages import answer_of, metadata_of, observation_of
from vla_ros.policies.serving.wire import pack, unpack

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
except ImportError as error:
    raise NotInstalled("vla serve needs websockets: pip install msgpack websockets (or `make setup`)") from error

_log = logging.getLogger(__name__)
# What strangers send before the handshake is no news for this log.
_handshakes = logging.getLogger(f"{__name__}.websockets")
_handshakes.setLevel(logging.CRITICAL)

_SCHEMES = ("Bearer", "Api-Key")  # the second is openpi-client's
_BUSY, _FAILED, _REASON_MAX = 1013, 1011, 80  # websocket close codes; a reason has little room


@dataclass(frozen=True)
class ServeSettings:
    """Where and for whom.

    Args:
        host, port: where it listens; port 0 takes a free one.
        token: what a client must send in `Authorization` (Bearer or Api-Key), "" for none: on this machine only.
        max_request_mb: a longer message ends its connection.
        clients: connections at a time. One: the policy is reset with each connection, so that every rollout has its own history.
            More share it, which is for policies without a history; it is reset when the first of them comes.
        slot_wait_s: how long a further client waits for a place before it is turned away.
        batch, batch_wait_ms: see `Batching`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    max_request_mb: float = 64
    clients: int = 1
    slot_wait_s: float = 2.0
    batch: int = 1
    batch_wait_ms: float = 0.0

    def __post_init__(self) -> None:
        if not self.token and not _is_loopback(self.host):
            raise ConfigError(f"--host {self.host} is reachable from other machines: give a --token too, or listen on 127.0.0.1")
        limits = {"port": (0, 65535), "max_request_mb": (0.001, 4096), "clients": (1, 256), "batch": (1, 256), "batch_wait_ms": (0, 10_000)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name):g}, expected {low:g} .. {high:g}")
        if self.batch > self.clients:
            raise ConfigError(
                f"--batch {self.batch} with --clients {self.clients}: a client waits for its answer, so give as many --clients"
            )


class PolicyServer:
    """Serves `policy` until cancelled. Nothing that a client sends ends it."""

    def __init__(self, policy: Policy, settings: ServeSettings) -> None:
        self._settings, self._spec = settings, policy.spec
        self._batching = Batching(policy, settings.batch, settings.batch_wait_ms * 1e-3, alone=settings.clients == 1)
        self._slots = asyncio.Semaphore(settings.clients)
        self._clients = self._number = 0
        self._metadata = pack(metadata_of(policy.spec))

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Listens; calls `ready` with the port then. Raises DeviceError when the address cannot be had."""
        settings = self._settings
        try:
            server = await serve(
                self._handle, settings.host, settings.port, compression=None, max_size=round(settings.max_request_mb * 2**20), max_queue=2,
                origins=[None], process_request=self._admit, logger=_handshakes,
            )  # fmt: skip
        except OSError as error:
            raise DeviceError(f"{settings.host}:{settings.port}: {error.strerror or error}; choose another --port or --host") from None
        runner = asyncio.create_task(self._batching.run())
        try:
            async with server:
                ready(server.sockets[0].getsockname()[1])
                await runner
        finally:
            runner.cancel()
            self._batching.close()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the handshake. Web pages are refused by `origins`: a browser on this machine must not steer the robot."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._settings.token:
            return None
        sent = request.headers.get_all("Authorization")
        given = "".join(sent).encode("utf-8", "replace")
        right = [hmac.compare_digest(given, f"{scheme} {self._settings.token}".encode()) for scheme in _SCHEMES]
        if any(right):
            return None
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the server's --token as Authorization: Bearer\n")

    async def _handle(self, connection: ServerConnection) -> None:
        try:
            async with self._place():
                await connection.send(self._metadata)
                async for message in connection:
                    await connection.send(await self._answer(message))
        except TimeoutError:
            await connection.close(_BUSY, f"all {self._settings.clients} places are taken; see vla serve --clients")
        except ConnectionClosed as error:
            _log.info("a client has gone: %s", error)
        except Exception as error:
            _log.exception("a connection failed")
            await connection.close(_FAILED, f"{type(error).__name__}: {error}"[:_REASON_MAX])

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places, the policy reset for it if nobody else has one. Raises TimeoutError when all are taken."""
        try:
            await asyncio.wait_for(self._slots.acquire(), self._settings.slot_wait_s)
        except asyncio.TimeoutError:  # another class before Python 3.11
            raise TimeoutError from None
        try:
            self._clients += 1
            if self._clients == 1:
                await self._batching.reset()
            yield
        finally:
            self._clients -= 1
            self._slots.release()

    async def _answer(self, message: str | bytes) -> bytes | str:
        """The answer, or as text what is wrong; the connection stays."""
        try:
            if isinstance(message, str):
                raise PolicyError("this server reads binary msgpack messages, not text")
            self._number += 1
            observation = observation_of(unpack(message), self._spec, self._number)
            inference, infer_s = await self._batching.infer(observation)
            if not isinstance(inference, Inference):
                raise PolicyError(f"{self._spec.name}: infer returned {type(inference).__name__}, expected Inference")
            return pack(answer_of(inference, infer_s))
        except VlaError as error:
            return str(error)
        except Exception as error:  # the policy's own fault, told to both sides
            _log.exception("%s failed", self._spec.name)
            return f"{self._spec.name}: {type(error).__name__}: {error}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
