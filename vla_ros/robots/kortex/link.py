"""What the driver holds: two sessions (TCP for commands, UDP for feedback) and the one thread that sends commands.

A joint speed or twist goes on until the base gets another one. So this thread sends zero when nobody asked for motion for `hold_after_s`,
and the base itself stops a motion whose session has been silent for `motion_timeout_s` (the computer died).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from vla_ros.core.errors import DeviceError, StaleData, VlaError
from vla_ros.robots.kortex import codes
from vla_ros.robots.kortex.feedback import Feedback, Sample
from vla_ros.robots.kortex.messages import Message, new, parse
from vla_ros.robots.kortex.motion import Motion, joint_speeds
from vla_ros.robots.kortex.session import Login, Session
from vla_ros.robots.kortex.wire import TcpTransport, UdpTransport

# The base takes over high-level commands 40 times a second: a flood of them is thinned out here, only the newest goes.
_GAP_S = 0.01
_log = logging.getLogger(__name__)


class KortexLink:
    """Open until `close`; dead after StaleData: close it and make a new one.

    Args:
        count: joints of the arm. unwrap, stale_after_s: see Feedback.
        hold_after_s: zero speed is sent when no motion was given for so long.
        timeout_s: of a request.

    Raises:
        DeviceError: nobody at `address`, user refused, another number of joints, not in high-level servoing.
    """

    def __init__(
        self,
        address: str,
        ports: tuple[int, int],
        login: Login,
        *,
        count: int,
        unwrap: Callable[[np.ndarray], np.ndarray],
        hold_after_s: float,
        stale_after_s: float,
        timeout_s: float,
    ) -> None:
        self._where = f"kinova at {address}"
        self._hold_after_s = hold_after_s
        self._idle_s = login.motion_timeout_s / 3
        self._motion: Motion | None = None
        self._zero = joint_speeds(np.zeros(count))  # ends the motion that was given last
        self._gripper: float | None = None
        self._moving = self._under_way = False  # may the arm move because of us; has the base said yes to that
        self._asked_s, self._sent_s = 0.0, time.monotonic()
        self._fault: DeviceError | None = None
        self._lost: StaleData | None = None
        self._changed, self._closing, self._hung_up = threading.Condition(), False, False
        self._open: list[Session | Feedback] = []
        self._thread: threading.Thread | None = None
        try:
            self._commands = self._session(lambda: TcpTransport(address, ports[0], timeout_s), login, timeout_s)
            self._enter_servoing()
            state = self._session(lambda: UdpTransport(address, ports[1]), login, timeout_s)
            self._feedback = Feedback(state, self._where, count, unwrap, stale_after_s)
            self._open.append(self._feedback)
            self._feedback.wait(timeout_s)
        except StaleData as error:
            self.close()
            raise DeviceError(str(error), "device") from error
        except DeviceError:
            self.close()
            raise
        self._thread = threading.Thread(target=self._work, name=f"commands to {self._where}", daemon=True)
        self._thread.start()

    def sample(self) -> Sample:
        """Returns the newest measurement. Raises StaleData."""
        if self._lost is not None:
            raise self._lost
        return self._feedback.sample()

    def check(self) -> None:
        """Raises DeviceError ("fault", "estop") when the base refused a command, until `clear_faults`."""
        if self._fault is not None:
            raise self._fault

    def move(self, motion: Motion) -> None:
        """Goes on with `motion` for up to `hold_after_s`. Does not block."""
        with self._changed:
            self._motion, self._zero, self._asked_s = motion, motion.zero(), time.monotonic()
            self._changed.notify()

    def halt(self) -> None:
        """Brakes; the base then holds the position. Does not block."""
        with self._changed:
            if not self._moving and self._motion is None:
                return
            self._motion = self._zero
            self._changed.notify()
        self._post_zero()

    def grip(self, closed: float) -> None:
        """Moves the fingers: 0 open .. 1 closed. Does not block."""
        with self._changed:
            self._gripper = closed
            self._changed.notify()

    def clear_faults(self, timeout_s: float) -> None:
        """Raises DeviceError when a fault stays for `timeout_s`, StaleData when it takes a new link."""
        hint = "clear the cause (emergency stop, collision, joint at its limit), then recover again"
        self.sample()
        if not self._thread.is_alive():
            raise StaleData(f"{self._where}: hung up because the base would not stop", "link_lost")
        self._commands.call(codes.CLEAR_FAULTS)
        self._fault = None
        deadline_s = time.monotonic() + timeout_s
        while fault := self.sample().fault:  # the newest sample may be from before
            if time.monotonic() > deadline_s:
                raise DeviceError(f"{self._where}: recovery failed: {fault}; {hint}", self.sample().reason)
            time.sleep(0.01)
        self._enter_servoing()

    def close(self) -> None:
        """Stops the arm, ends both sessions. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.5)
        for part in reversed(self._open):
            part.close()
        self._open.clear()

    def _session(self, transport: Callable[[], TcpTransport | UdpTransport], login: Login, timeout_s: float) -> Session:
        try:
            opened = transport()
        except OSError as error:
            hint = "is the robot on, its Ethernet plugged in, and this computer in its network?"
            raise DeviceError(f"{self._where}: {error}; {hint}", "device") from error
        try:
            session = Session(opened, self._where, login, timeout_s)
        except VlaError:
            opened.close()
            raise
        self._open.append(session)
        return session

    def _enter_servoing(self) -> None:
        """High-level servoing, unless the arm is in fault: then its fault is told until `clear_faults`."""
        state = parse("ArmStateInformation", self._commands.call(codes.GET_ARM_STATE)).active_state
        if state == codes.ArmState.IN_FAULT:
            return
        self._commands.call(codes.SET_SERVOING_MODE, new("ServoingModeInformation", servoing_mode=codes.SINGLE_LEVEL_SERVOING))
        mode = parse("ServoingModeInformation", self._commands.call(codes.GET_SERVOING_MODE)).servoing_mode
        if mode != codes.SINGLE_LEVEL_SERVOING:
            raise DeviceError(f"{self._where}: servoing mode {mode}, expected 2 (single level); close other programs", "device")

    # The commanding thread.

    def _work(self) -> None:
        try:
            while not self._closing and not self._hung_up:
                with self._changed:
                    if self._motion is None and self._gripper is None and not self._closing:
                        self._changed.wait(self._patience_s())
                    motion, self._motion = self._motion, None
                    self._moving = self._moving or (motion is not None and motion.moves)  # even if the answer gets lost
                    gripper, self._gripper = self._gripper, None
                self._send(motion, gripper)
                time.sleep(_GAP_S if motion is not None else 0.0)
            if self._moving:
                self._brake()
        except StaleData as error:
            self._lost = error
            self._post_zero()
            _log.error(str(error))

    def _patience_s(self) -> float:
        now_s = time.monotonic()
        idle_s = self._sent_s + self._idle_s - now_s
        return max(0.0, min(idle_s, self._asked_s + self._hold_after_s - now_s) if self._moving else idle_s)

    def _send(self, motion: Motion | None, gripper: float | None) -> None:
        """Sends what is wanted, else zero speed or a sign of life when that is due. Keeps a refusal. Raises StaleData."""
        now_s = time.monotonic()
        if motion is None and self._moving and now_s - self._asked_s >= self._hold_after_s:
            motion = self._zero
        try:
            if motion is not None:
                self._call(motion.function, motion.message())
                self._under_way = self._moving = motion.moves
            if gripper is not None:
                finger = new("Finger", finger_identifier=1, value=gripper)
                self._call(codes.SEND_GRIPPER, new("GripperCommand", mode=codes.GRIPPER_POSITION, gripper=new("Gripper", finger=[finger])))
            if now_s - self._sent_s >= self._idle_s:
                self._call(codes.KEEP_ALIVE)
        except DeviceError as error:
            self._fault = self._fault or error
            _log.error(str(error))
            if self._under_way:
                self._brake()
            self._moving = False

    def _post_zero(self) -> None:
        """Zero speed without waiting for anybody: a base that does not answer may still hear."""
        with contextlib.suppress(OSError):  # the connection is gone, and with it the motion after the base's own time-out
            zero = self._zero
            self._commands.post(zero.function, zero.message())

    def _brake(self) -> None:
        """Stop, and where the base refuses that too, its emergency stop. An arm in fault stands already. Raises StaleData.

        A base that refuses both gets no sign of life any more: after `motion_timeout_s` it stops by itself.
        """
        self._under_way = False
        if self._feedback.sample().fault:
            return
        for function in (codes.STOP, codes.APPLY_EMERGENCY_STOP):
            try:
                self._call(function)
                return
            except DeviceError as error:
                _log.error(str(error))
        self._hung_up = True

    def _call(self, function: codes.Function, message: Message | None = None) -> None:
        self._commands.call(function, message)
        self._sent_s = time.monotonic()
