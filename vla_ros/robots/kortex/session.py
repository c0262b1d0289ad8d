"""A user's session with the base on one transport: log-in, one request at a time, its answer or a named error."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.robots.kortex import codes
from vla_ros.robots.kortex.codes import Function
from vla_ros.robots.kortex.messages import DecodeError, Message, new, parse
from vla_ros.robots.kortex.wire import RESPONSE, Reply, Transport, WireError, pack_request, unpack

_ESTOP_SUB_ERROR = 25


@dataclass(frozen=True)
class Login:
    """Who logs in, and after how long without a frame the base ends the session, and the motion that it started."""

    username: str
    password: str
    session_timeout_s: float
    motion_timeout_s: float


class Session:
    """Open until `close`. Any thread may call; a request waits for the answer to the one before, except those of `post`.

    Args:
        where: "kinova at <address>", for errors.
        timeout_s: of a request.

    Raises:
        DeviceError: the base does not take the user ("device"). StaleData: it does not answer.
    """

    def __init__(self, transport: Transport, where: str, login: Login, timeout_s: float) -> None:
        self._transport, self._where, self._timeout_s = transport, where, timeout_s
        self._asking, self._writing = threading.Lock(), threading.Lock()
        self._number = self._message = 0
        self._answers = False
        info = new(
            "CreateSessionInfo",
            username=login.username,
            password=login.password,
            session_inactivity_timeout=round(login.session_timeout_s * 1e3),
            connection_inactivity_timeout=round(login.motion_timeout_s * 1e3),
        )
        try:
            reply = self.exchange(codes.CREATE_SESSION, info.SerializeToString(), timeout_s)
        except (TimeoutError, WireError, OSError) as error:
            raise self._lost(codes.CREATE_SESSION, error) from error
        if reply.error:
            hint = f"does user '{login.username}' exist, with this password?" if reply.sub_error in (15, 16) else "see the robot's web app"
            raise DeviceError(f"{where}: log-in refused: {describe(reply)}; {hint}", "device")
        self._number = reply.session

    def call(self, function: Function, message: Message | None = None) -> bytes:
        """Returns the payload of the answer.

        Raises:
            StaleData: no answer in time, no Kortex frame, or the session is over ("link_lost").
            DeviceError: the base refuses: "estop" in emergency stop, else "fault".
        """
        try:
            reply = self.exchange(function, message.SerializeToString() if message is not None else b"", self._timeout_s)
        except (TimeoutError, WireError, OSError) as error:
            raise self._lost(function, error) from error
        if not reply.error:
            return reply.payload
        text = f"{self._where}: {function.name} refused: {describe(reply)}"
        if reply.sub_error == codes.INVALID_SESSION:
            raise StaleData(f"{text}; the session is over, recover opens a new one", "link_lost")
        raise DeviceError(text, "estop" if reply.sub_error == _ESTOP_SUB_ERROR else "fault")

    def exchange(self, function: Function, payload: bytes, timeout_s: float) -> Reply:
        """Sends a request and returns its answer, an error of the base too. Raises TimeoutError, WireError, OSError."""
        with self._asking:
            self._answers = False
            number = self._send(function, payload)
            deadline_s = time.monotonic() + timeout_s
            while True:
                reply = unpack(self._transport.receive(deadline_s))
                # answers to requests that were given up or posted, and notifications, are no answer to this one
                if reply.kind == RESPONSE and reply.message == number:
                    self._answers = True
                    return reply

    def post(self, function: Function, message: Message) -> None:
        """Sends a request whose answer nobody waits for, even while another one waits for its own. Raises OSError."""
        self._send(function, message.SerializeToString())

    def _send(self, function: Function, payload: bytes) -> int:
        with self._writing:
            self._message = (self._message + 1) & 0xFFFF
            self._transport.send(pack_request(function.service, function.number, self._number, self._message, payload))
            return self._message

    def close(self) -> None:
        """Ends the session, if the base still answers, and the connection. Idempotent."""
        if self._answers:
            with contextlib.suppress(StaleData, DeviceError):  # the session is over already
                self.call(codes.CLOSE_SESSION)
        self._transport.close()

    def _lost(self, function: Function, error: Exception) -> StaleData:
        what = f"no answer within {self._timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        return StaleData(f"{self._where}: {function.name}: {what}; is the link up?", "link_lost")


def describe(reply: Reply) -> str:
    """Returns the base's error in words: code, sub-code, and the text that came with it."""
    error = codes.ERRORS.get(reply.error, f"error {reply.error}")
    sub_error = codes.SUB_ERRORS.get(reply.sub_error, f"sub-error {reply.sub_error}")
    try:
        text = parse("Error", reply.payload).error_sub_string
    except DecodeError:
        text = ""
    return f"{error}, {sub_error}" + (f" ({text})" if text else "")
