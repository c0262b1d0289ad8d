"""The connection to a Franka control box: one reader thread, no call that can block its caller for ever.

libfranka blocks in three places: a second client waits without end for the first to go, a read on a dead link takes 1 s,
and error recovery takes as long as the robot likes. All three run in threads of their own here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vla_ros.core.errors import DeviceError, NotInstalled, StaleData

try:
    import franky
except ModuleNotFoundError as error:
    raise NotInstalled("the franka driver needs franky: pip install franky-control (or `make setup`)") from error

Result = TypeVar("Result")
# libfranka's exceptions have no common base in franky; RuntimeError is what it makes of the rest.
FRANKY_ERRORS = (
    franky.NetworkException,
    franky.ControlException,
    franky.CommandException,
    franky.InvalidMotionTypeException,
    franky.InvalidOperationException,
    franky.ProtocolException,
    franky.RealtimeException,
    franky.IncompatibleVersionException,
    franky.GripperException,
    RuntimeError,
)
_FAULT_MODES = {
    franky.RobotMode.Reflex: "reflex",
    franky.RobotMode.UserStopped: "user_stopped",
    franky.RobotMode.Guiding: "guiding",
}
_READ_PERIOD_S = 0.005
_GRACE_S = 0.01
_log = logging.getLogger(__name__)


def call(what: str, function: Callable[[], Result], timeout_s: float, hint: str) -> Result:
    """Runs a franky call that may block in a thread of its own; raises DeviceError when it fails or takes too long."""
    outcome: dict[str, object] = {}
    done = threading.Event()

    def work() -> None:
        try:
            outcome["result"] = function()
            # as root, franky puts the calling thread on SCHED_FIFO 99, and what it starts inherits that
            if os.sched_getscheduler(0) != os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except FRANKY_ERRORS as error:
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=work, name=f"franka {what}", daemon=True).start()
    if not done.wait(timeout_s):
        raise DeviceError(f"{what}: no answer within {timeout_s:g} s; {hint}", "device")
    if "error" in outcome:
        raise DeviceError(f"{what}: {outcome['error']}; {hint}", "device")
    return outcome["result"]


def realtime_kernel() -> bool:
    """Whether this kernel is PREEMPT_RT, which libfranka asks for unless told otherwise."""
    flag = Path("/sys/kernel/realtime")
    return flag.is_file() and flag.read_text().strip() == "1"


class ClockMap:
    """Maps the device's clock to the host's: the shortest way seen is the truest, and the clocks may drift apart slowly."""

    _DRIFT = 0.001  # s per s by which the estimate may give way
    _JUMP_NS = 20_000_000  # more than this is a simulator that was slow, not a message that was late

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._device_ns = 0

    def host_ns(self, device_ns: int, arrival_ns: int) -> int:
        """Returns the host's time (ns since the epoch) at which the device measured what arrived at `arrival_ns`."""
        offset_ns = arrival_ns - device_ns
        if self._offset_ns is None or offset_ns < self._offset_ns or offset_ns - self._offset_ns > self._JUMP_NS:
            self._offset_ns = offset_ns
        else:
            self._offset_ns = min(offset_ns, self._offset_ns + int(self._DRIFT * (device_ns - self._device_ns)))
        self._device_ns = device_ns
        return device_ns + self._offset_ns


@dataclass(frozen=True)
class Sample:
    """One measurement: `position` [7] rad, `velocity` [7] rad/s, `effort` [7] N m; `fault` is libfranka's word for why it does not move."""

    stamp_ns: int
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    fault: str = ""


class FrankaLink:
    """An open connection. The object is dead after `StaleData`: close it and make a new one.

    Raises:
        DeviceError: no control box at `address`, FCI not active, or another client holds it.
    """

    def __init__(
        self, address: str, *, timeout_s: float, stale_after_s: float, torque_threshold_nm: float, force_threshold_n: float
    ) -> None:
        config = franky.RealtimeConfig.Enforce
        if not realtime_kernel():
            _log.info("%s: no PREEMPT_RT kernel, libfranka runs without real-time priority", address)
            config = franky.RealtimeConfig.Ignore
        hint = "is the robot on and unlocked, FCI active, and no other program connected to it?"
        self.address = address
        self._stale_after_s = stale_after_s
        self._robot = call(
            f"franka at {address}",
            lambda: franky.Robot(
                address, default_torque_threshold=torque_threshold_nm, default_force_threshold=force_threshold_n, realtime_config=config
            ),
            timeout_s,
            hint,
        )
        self._clock = ClockMap()
        self._fault = ""
        self._closing = threading.Event()
        self._fresh = threading.Event()
        self._sample: Sample | None = None
        self._advanced_s = time.monotonic()
        self._reader = threading.Thread(target=self._read, name=f"franka {address}", daemon=True)
        self._reader.start()
        if not self._fresh.wait(timeout_s):
            self._closing.set()
            raise DeviceError(f"franka at {address}: connected, but no state within {timeout_s:g} s; {hint}", "device")

    def sample(self) -> Sample:
        """Returns the newest measurement, at most `stale_after_s` old. Raises StaleData."""
        age_s = time.monotonic() - self._advanced_s
        if age_s > self._stale_after_s:
            # a process that was kept from running is not a dead link: let the reader go first
            self._fresh.clear()
            if self._fresh.wait(_GRACE_S):
                return self._sample
            message = f"franka at {self.address}: no new state for {age_s:.3f} s, limit {self._stale_after_s:g} s; is the link up?"
            raise StaleData(message, "link_lost")
        return self._sample

    def move(self, velocity_rad_s: Sequence[float], duration_s: float) -> None:
        """Heads for joint velocities [7], which end by themselves after `duration_s`. Does not block. Raises DeviceError."""
        # franky takes floats only: a list that mixes in an int is a TypeError
        motion = franky.JointVelocityMotion([float(value) for value in velocity_rad_s], franky.Duration(round(duration_s * 1e3)))
        self._start(motion)

    def halt(self) -> None:
        """Brakes within the joints' limits and holds. Does not block; nothing to do when no motion runs. Raises DeviceError."""
        if self._robot.is_in_control:
            self._start(franky.JointVelocityStopMotion())

    @property
    def moving(self) -> bool:
        """Whether a motion runs (also, for up to 1 s, on a link that just died)."""
        return self._robot.is_in_control

    def clear_faults(self, timeout_s: float) -> None:
        """Lets libfranka recover from a reflex. Raises DeviceError when it cannot."""
        hint = "free the arm, release the user stop, then recover again"
        recovered = call(f"franka at {self.address}: recovery", self._robot.recover_from_errors, timeout_s, hint)
        self._fault = ""
        # the newest sample is from before the recovery and still carries the fault
        deadline_s = time.monotonic() + timeout_s
        while recovered and (fault := self.sample().fault) and time.monotonic() < deadline_s:
            time.sleep(_READ_PERIOD_S)
        if not recovered or fault:
            raise DeviceError(f"franka at {self.address}: recovery failed; {hint}", "fault")

    def close(self) -> None:
        """Ends the reader and lets the connection go. Idempotent."""
        self._closing.set()
        self._reader.join(1.5)
        self._robot = None

    def _start(self, motion: franky.JointVelocityMotion | franky.JointVelocityStopMotion) -> None:
        try:
            self._robot.move(motion, asynchronous=True)
        except FRANKY_ERRORS as error:
            self._fault = str(error)
            raise DeviceError(f"franka at {self.address}: {error}; call ~/recover", "fault") from error

    def _read(self) -> None:
        """Keeps the newest sample; ends with the link."""
        last_ms = -1
        while not self._closing.wait(_READ_PERIOD_S):
            try:
                state = self._robot.state
            except FRANKY_ERRORS as error:
                _log.warning("franka at %s: %s", self.address, error)
                return
            arrival_ns, device_ms = time.time_ns(), state.time.to_msec()
            self._poll()
            if device_ms == last_ms:
                continue
            last_ms = device_ms
            stamp_ns = self._clock.host_ns(device_ms * 1_000_000, arrival_ns)
            fault = self._fault or _FAULT_MODES.get(state.robot_mode, "")
            self._sample = Sample(stamp_ns, np.array(state.q), np.array(state.dq), np.array(state.tau_J), fault)
            self._advanced_s = time.monotonic()
            self._fresh.set()

    def _poll(self) -> None:
        """Keeps what ended a motion: asynchronous motions tell it here only."""
        try:
            self._robot.poll_motion()
        except FRANKY_ERRORS as error:
            self._fault = str(error)
            _log.error("franka at %s: %s", self.address, error)
