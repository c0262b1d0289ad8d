"""The arm's state as the base tells it, polled over UDP in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import StaleData
from vla_ros.robots.kortex import codes
from vla_ros.robots.kortex.messages import DecodeError, Message, parse
from vla_ros.robots.kortex.session import Session, describe
from vla_ros.robots.kortex.wire import WireError

_PERIOD_S = 0.01
_ANSWER_WITHIN_S = 0.05
_GRACE_S = 0.01
_READY = (codes.ArmState.SERVOING_READY, codes.ArmState.SERVOING_MANUALLY_CONTROLLED)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One measurement: `position` [N] rad, `velocity` [N] rad/s, `effort` [N] N m; `closed` of the gripper, 0 open .. 1, None without one.

    `fault` says why the arm does not move, "" when it does; `reason` is then "estop" or "fault".
    """

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    closed: float | None
    fault: str = ""
    reason: str = ""


class Feedback:
    """Polls until `close`.

    Args:
        session: on UDP.
        count: joints that the arm must have.
        unwrap: makes continuous positions [N] rad of those between 0 and a full turn that come; called in order.
        stale_after_s: no new, different state for so long means that the link is dead.
    """

    def __init__(self, session: Session, where: str, count: int, unwrap: Callable[[np.ndarray], np.ndarray], stale_after_s: float) -> None:
        self._session, self._where, self._count = session, where, count
        self._unwrap, self._stale_after_s = unwrap, stale_after_s
        self._sample: Sample | None = None
        self._last = b""
        self._trouble = ""
        self._lost: StaleData | None = None
        self._advanced_s = time.monotonic()
        self._fresh, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"feedback of {where}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Waits for the first states. Raises StaleData when no two different ones came within `timeout_s`."""
        if not self._fresh.wait(timeout_s):
            raise StaleData(f"{self._where}: no new state within {timeout_s:g} s{self._trouble}", "link_lost")

    def sample(self) -> Sample:
        """Returns the newest measurement, at most `stale_after_s` old. Raises StaleData ("link_lost")."""
        if self._lost is not None:
            raise self._lost
        age_s = time.monotonic() - self._advanced_s
        if age_s > self._stale_after_s:
            # a process that was kept from running is not a dead link: let the thread go first
            self._fresh.clear()
            if not self._fresh.wait(_GRACE_S):
                what = f"no new state for {age_s:.3f} s, limit {self._stale_after_s:g} s"
                raise StaleData(f"{self._where}: {what}{self._trouble}; is the link up?", "link_lost")
        return self._sample

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        self._closing.set()
        self._thread.join(1.0)

    def _poll(self) -> None:
        next_s = time.monotonic()
        while not self._closing.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + _PERIOD_S, time.monotonic())
            asked_ns = time.time_ns()
            try:
                reply = self._session.exchange(codes.REFRESH_FEEDBACK, b"", _ANSWER_WITHIN_S)
                state = parse("Feedback", reply.payload) if not reply.error else None
            except (TimeoutError, WireError, OSError, DecodeError) as error:
                # a lost datagram is asked for again; if none comes, `sample` tells with this cause
                self._trouble = f" ({'no answer' if isinstance(error, TimeoutError) else error})"
                continue
            if reply.sub_error == codes.INVALID_SESSION:
                self._lost = StaleData(f"{self._where}: {describe(reply)}; the session is over, recover opens a new one", "link_lost")
                return
            if state is None or len(state.actuators) != self._count:
                self._trouble = f" ({describe(reply) if state is None else f'{len(state.actuators)} joints, expected {self._count}'})"
            elif reply.payload == self._last:
                # currents and accelerations are never the same twice
                self._trouble = " (the base repeats an old state)"
            else:
                self._keep(state, reply.payload, (asked_ns + time.time_ns()) // 2)

    def _keep(self, state: Message, payload: bytes, stamp_ns: int) -> None:
        measured = np.radians([(joint.position, joint.velocity) for joint in state.actuators])
        if not np.isfinite(measured).all():
            self._trouble = " (positions that are not finite)"
            return
        effort = np.array([joint.torque for joint in state.actuators])
        motors = state.interconnect.gripper_feedback.motor
        fault, reason = _fault(state)
        closed = min(max(motors[0].position / 100.0, 0.0), 1.0) if motors else None
        if fault and fault != (self._sample.fault if self._sample else ""):
            _log.error("%s: %s", self._where, fault)
        self._sample = Sample(stamp_ns, self._unwrap(measured[:, 0]), measured[:, 1], effort, closed, fault, reason)
        if self._last:
            self._fresh.set()
        self._last, self._trouble, self._advanced_s = payload, "", time.monotonic()


def _fault(state: Message) -> tuple[str, str]:
    """Returns why the arm takes no commands ("" when it does), and the reason in one word."""
    base = state.base
    names = codes.bits(base.fault_bank_a, codes.BASE_FAULTS)
    reason = "estop" if codes.EMERGENCY_FAULTS.intersection(names) else "fault"
    for number, joint in enumerate(state.actuators, 1):
        names += [f"joint {number} {name}" for name in codes.bits(joint.fault_bank_a, codes.ACTUATOR_FAULTS)]
    if base.active_state in _READY and not names:
        return "", ""
    known = base.active_state in iter(codes.ArmState)
    arm = codes.ArmState(base.active_state).name if known else f"number {base.active_state}"
    return f"arm state {arm}" + (f", faults: {', '.join(names)}" if names else ""), reason
