"""The connection to a Franka control box: one reader thread, one that moves it, no call that can block its caller for ever.

libfranka blocks in three places: a second client waits without end for the first to go, a read on a dead link takes 1 s,
and error recovery takes as long as the robot likes. All three run in threads of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

from vla_ros.core.clock import ClockMap
from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.robots.franka_motion import FrankaMotion, Stiffness
from vla_ros.robots.franka_sdk import FRANKY_ERRORS, LINK_ERRORS, call, fault_of, open_robot, reason_of

_READ_PERIOD_S = 0.005
_GRACE_S = 0.01
_HINT = "is the robot on and unlocked, FCI active, and no other program connected to it?"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One measurement: `position` [7] rad, `velocity` [7] rad/s, `effort` [7] N m; `fault` is libfranka's word for why it does not move.

    `pose` [4, 4]: O_T_EE, the end effector as it is set in Desk.
    """

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    pose: np.ndarray
    fault: str = ""


class FrankaLink:
    """An open connection. The object is dead after `StaleData`: close it and make a new one.

    Raises:
        DeviceError: no control box at `address`, FCI not active, or another client holds it.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        stale_after_s: float,
        hold_after_s: float,
        stiffness: Stiffness,
        torque_threshold_nm: float,
        force_threshold_n: float,
    ) -> None:
        self.address = address
        self._stale_after_s = stale_after_s
        self._robot = open_robot(address, torque_threshold_nm, force_threshold_n, timeout_s, _HINT)
        self.motion = FrankaMotion(self._robot, address, hold_after_s, stiffness)
        self._clock = ClockMap()
        self._closing = threading.Event()
        self._fresh = threading.Event()
        self._sample: Sample | None = None
        self._unusable = ""
        self._advanced_s = time.monotonic()
        self._reader = threading.Thread(target=self._read, name=f"franka {address}", daemon=True)
        self._reader.start()
        if not self._fresh.wait(timeout_s):
            self.close()
            raise DeviceError(f"franka at {address}: connected, but no state within {timeout_s:g} s; {_HINT}", "device")

    def sample(self) -> Sample:
        """Returns the newest measurement, at most `stale_after_s` old. Raises StaleData."""
        if self.motion.dead:
            raise StaleData(f"franka at {self.address}: {self.motion.dead}; is the link up?", "link_lost")
        age_s = time.monotonic() - self._advanced_s
        if age_s > self._stale_after_s:
            # a process that was kept from running is not a dead link: let the reader go first
            self._fresh.clear()
            if self._fresh.wait(_GRACE_S):
                return self._sample
            message = f"no {self._unusable or 'new'} state for {age_s:.3f} s, limit {self._stale_after_s:g} s; is the link up?"
            raise StaleData(f"franka at {self.address}: {message}", "link_lost")
        return self._sample

    def check(self) -> None:
        """Raises DeviceError with libfranka's sentence while the control box or the last motion is at fault."""
        fault = self.motion.fault or self.sample().fault
        if fault:
            raise DeviceError(f"franka at {self.address}: {fault}; clear the cause, then ~/recover", reason_of(fault))

    def clear_faults(self, timeout_s: float) -> None:
        """Lets libfranka recover from a reflex. Raises DeviceError when it cannot."""
        hint = "free the arm, release the user stop, then recover again"
        call(f"franka at {self.address}: recovery", self._robot.recover_from_errors, timeout_s, hint)
        self.motion.clear()
        # the newest sample may be from before the recovery and still carry the fault
        deadline_s = time.monotonic() + timeout_s
        while (fault := self.sample().fault) and time.monotonic() < deadline_s:
            time.sleep(_READ_PERIOD_S)
        if fault:
            raise DeviceError(f"franka at {self.address}: recovery failed: {fault}; {hint}", reason_of(fault))

    def close(self) -> None:
        """Ends the threads and lets the connection go. Idempotent."""
        self._closing.set()
        self._reader.join(1.5)
        self.motion.close()
        self._robot = None

    def _read(self) -> None:
        """Keeps the newest sample; ends with the link."""
        last_ms = -1
        while not self._closing.wait(_READ_PERIOD_S):
            try:
                state = self._robot.state
            except LINK_ERRORS as error:
                self.motion.failed(error)
                return
            except FRANKY_ERRORS as error:
                _log.warning("franka at %s: %s", self.address, error)
                return
            arrival_ns, device_ms = time.time_ns(), state.time.to_msec()
            self._poll()
            if device_ms == last_ms:
                continue
            last_ms = device_ms
            position, velocity, effort = np.array(state.q), np.array(state.dq), np.array(state.tau_J)
            if not np.isfinite([position, velocity, effort]).all():
                self._unusable = "finite"
                continue
            self._unusable = ""
            stamp_ns = self._clock.host_ns(device_ms * 1_000_000, arrival_ns)
            self._sample = Sample(stamp_ns, position, velocity, effort, state.O_T_EE.matrix, fault_of(state))
            self._advanced_s = time.monotonic()
            self._fresh.set()

    def _poll(self) -> None:
        """Keeps what ended a motion: asynchronous motions tell it here only."""
        try:
            self._robot.poll_motion()
        except FRANKY_ERRORS as error:
            self.motion.failed(error)
