"""The thread that owns the servo bus of one ViperX: measures at 100 Hz, sends the newest goals, stops the arm on any servo's error."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import StaleData, VlaError
from vla_ros.robots import dynamixel_bus as dxl
from vla_ros.robots.dynamixel_bus import DynamixelBus, SyncReply, value_of
from vla_ros.robots.viperx_clock import ServoClock
from vla_ros.robots.viperx_servos import GRIPPER, JOINT_SERVOS, angle_of, effort_nm, named

# One block holds goal, clock, current, velocity and position; a hardware error shows in the answer itself, as its alert bit.
_STATE_START = dxl.GOAL_POSITION.address
_STATE_LENGTH = dxl.PRESENT_POSITION.address + 4 - _STATE_START
# Less often: is torque still on?
_HEALTH_START = dxl.TORQUE_ENABLE.address
_HEALTH_LENGTH = dxl.HARDWARE_ERROR.address + 1 - _HEALTH_START
_HEALTH_CYCLES = 8
_BLOCKED_S, _BLOCKED_MOVE_RAD = 0.3, 0.02
_GRACE_S = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """`position`, `velocity` [6] rad, rad/s of the servos, `effort` [6] N m; `gripper_rad` is its motor's angle."""

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    gripper_rad: float


class ViperXLink:
    """Runs from `start` to `close`. A dead link does not come back: make a new one.

    Args:
        bus: open, its servos set up; from `start` on only this thread uses it.
        servos: that are read, in the order of the ids.
        rate_hz: of the measurements. stale_after_s: a servo without a new measurement for so long is lost.
        blocked_rad: a joint that stays so far behind its goal without moving is blocked.
    """

    def __init__(self, bus: DynamixelBus, servos: tuple[int, ...], *, rate_hz: float, stale_after_s: float, blocked_rad: float) -> None:
        self._bus, self._order = bus, list(servos)
        self._period_s, self._stale_after_s, self._blocked_rad = 1.0 / rate_hz, stale_after_s, blocked_rad
        self._blocks: dict[int, bytes] = {}
        self._clocks = {servo: ServoClock() for servo in servos}
        self._seen_s = dict.fromkeys(servos, time.monotonic())
        self._failure = "no answer yet"
        self._recent: deque[tuple[float, np.ndarray]] = deque(maxlen=round(_BLOCKED_S * rate_hz) + 1)
        self._wake = threading.Condition()
        self._next: dict[int, int] = {}
        self._holding = self._held = self._silent = self._closing = False
        self._dead = ""
        self.fault: tuple[str, str] | None = None  # reason and sentence of the first one
        self._sample: Sample | None = None
        self._fresh = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"viperx {bus.port}", daemon=True)

    def start(self) -> None:
        """Returns with the first measurement. Raises StaleData."""
        self._thread.start()
        self._fresh.wait(self._stale_after_s + 10 * self._period_s)
        self.sample()

    def close(self) -> None:
        """Ends the thread, then closes the port; the servos go on holding their goals."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._bus.close()

    def sample(self) -> Sample:
        """Returns the newest measurement of all servos. Raises StaleData ("link_lost") that says which servo is silent."""
        if self._dead:
            raise StaleData(self._dead, "link_lost")
        if self._sample is None or self._lost():
            # a process that was kept from running is not a dead link: let the thread go first
            self._fresh.clear()
            self._fresh.wait(_GRACE_S)
            if self._dead or self._sample is None or self._lost():
                raise StaleData(self._dead or self._lost_sentence(), "link_lost")
        return self._sample

    def move(self, goals: Mapping[int, int]) -> None:
        """Sends goal positions (ticks by servo) at once; an unsent older one is dropped. Ignored after a fault."""
        with self._wake:
            self._next |= goals
            self._holding = self._held = False
            self._wake.notify()

    def hold(self) -> None:
        """Makes the measured joint positions the goals, once; the gripper keeps its own. On a dead link the servos hold their last goal.

        Again and again, an arm that gives way a little would sink, and one that was put elsewhere (a simulator's reset) would come back.
        """
        with self._wake:
            if self._held:
                return
            self._holding = self._held = True
            self._next = {servo: goal for servo, goal in self._next.items() if servo == GRIPPER}
            self._wake.notify()

    def _run(self) -> None:
        due_s, cycle = time.monotonic(), 0
        try:
            while True:
                with self._wake:
                    while not (self._next or self._holding or self._closing) and (left_s := due_s - time.monotonic()) > 0:
                        self._wake.wait(left_s)
                    goals, holding, closing = self._next, self._holding, self._closing
                    self._next, self._holding = {}, False
                self._send(goals, holding)
                if closing:
                    return
                if time.monotonic() >= due_s:
                    self._measure()
                    if cycle % _HEALTH_CYCLES == 0:
                        self._check_health()
                    cycle += 1
                    due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
        except VlaError as error:
            self._dead = str(error)
            _log.error(self._dead)

    def _send(self, goals: dict[int, int], holding: bool) -> None:
        if holding or self.fault:
            goals = {servo: goal for servo, goal in goals.items() if servo == GRIPPER}
        if holding:
            goals |= {
                servo: value_of(self._blocks[servo], _STATE_START, dxl.PRESENT_POSITION) for servo in JOINT_SERVOS if servo in self._blocks
            }
        if goals:
            self._bus.sync_write(dxl.GOAL_POSITION, goals)
            if holding:
                self._recent.clear()

    def _measure(self) -> None:
        begun_s, stamp_ns = time.monotonic(), time.time_ns()
        reply = self._bus.sync_read(self._order, _STATE_START, _STATE_LENGTH)
        self._note_silence(reply)
        for servo, block in reply.data.items():
            self._blocks[servo] = block
            age_s = self._clocks[servo].age_s(self._value(servo, dxl.REALTIME_TICK), begun_s)
            self._seen_s[servo] = max(self._seen_s[servo], begun_s - age_s)
            if age_s > self._stale_after_s:
                self._failure = f"its answer is {age_s:.2f} s old by its own clock"
        if reply.alert:
            self._check_health()
        if len(self._blocks) == len(self._order):
            self._take_sample(stamp_ns - round((begun_s - min(self._seen_s.values())) * 1e9))
            self._check_blocked()
        self._hold_when_lost()

    def _take_sample(self, stamp_ns: int) -> None:
        def values(register: dxl.Register) -> np.ndarray:
            return np.array([self._value(servo, register) for servo in JOINT_SERVOS])

        self._sample = Sample(
            stamp_ns,
            angle_of(values(dxl.PRESENT_POSITION)),
            values(dxl.PRESENT_VELOCITY) * dxl.VELOCITY_RAD_S,
            effort_nm({servo: self._value(servo, dxl.PRESENT_CURRENT) for servo in self._blocks}),
            angle_of(self._value(GRIPPER, dxl.PRESENT_POSITION)) if GRIPPER in self._blocks else 0.0,
        )
        if not self._lost():
            self._fresh.set()

    def _value(self, servo: int, register: dxl.Register) -> int:
        return value_of(self._blocks[servo], _STATE_START, register)

    def _note_silence(self, reply: SyncReply) -> None:
        """Those after a silent servo keep silent too: ask it last from now on, so that the others are heard."""
        if reply.silent is not None:
            self._failure = reply.failure
            self._order.remove(reply.silent)
            self._order.append(reply.silent)

    def _lost(self) -> list[int]:
        deadline_s = time.monotonic() - self._stale_after_s
        return [servo for servo, seen_s in self._seen_s.items() if seen_s < deadline_s]

    def _lost_sentence(self) -> str:
        lost = self._lost()
        who = "no servo" if len(lost) == len(self._order) else ", ".join(map(named, lost))
        return f"{self._bus.port}: {who} measured anew for {self._stale_after_s:g} s ({self._failure}); are power and cables connected?"

    def _hold_when_lost(self) -> None:
        """A servo that is gone must not leave the others moving."""
        lost = bool(self._lost())
        if lost and not self._silent:
            _log.error("%s", self._lost_sentence())
            self._send({}, True)
        self._silent = lost

    def _check_health(self) -> None:
        reply = self._bus.sync_read(self._order, _HEALTH_START, _HEALTH_LENGTH)
        for servo, block in reply.data.items():
            if status := value_of(block, _HEALTH_START, dxl.HARDWARE_ERROR):
                faults = dxl.hardware_faults(status)
                self._fail(faults[0], f"{named(servo)}: {', '.join(faults)}; support the arm, recovery restarts that servo")
            if not value_of(block, _HEALTH_START, dxl.TORQUE_ENABLE):
                self._fail("torque_lost", f"{named(servo)} has no torque; did its supply break down? support the arm")

    def _check_blocked(self) -> None:
        now_s, position = time.monotonic(), self._sample.position
        self._recent.append((now_s, position))
        since_s, before = self._recent[0]
        if self.fault or now_s - since_s < 0.9 * _BLOCKED_S:
            return
        for i, servo in enumerate(JOINT_SERVOS):
            behind = abs(angle_of(self._value(servo, dxl.GOAL_POSITION)) - position[i])
            if behind > self._blocked_rad and abs(position[i] - before[i]) < _BLOCKED_MOVE_RAD:
                self._check_health()  # one that has lost its torque has also forgotten its goal
                self._fail("blocked", f"{named(servo)} stands {behind:.2f} rad from its goal and does not move; what is in its way?")

    def _fail(self, reason: str, sentence: str) -> None:
        """Latches the first fault and stops the arm where it is."""
        if self.fault is None:
            self.fault = reason, f"{self._bus.port}: {sentence}"
            _log.error("%s", self.fault[1])
            self._send({}, True)
