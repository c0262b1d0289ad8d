"""The Franka Hand in a thread of its own: its calls block, its commands must not come at every tick."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from vla_ros.core.embodiment import Gripper
from vla_ros.core.errors import ConfigError
from vla_ros.robots.franka_sdk import FRANKY_ERRORS, call, franky

_PERIOD_S = 0.03
_HOMING_S = 15.0
# A width below the first closes, above the second opens fully.
_CLOSE_BELOW_M, _OPEN_ABOVE_M = 0.03, 0.05
_CLOSE_ABOVE, _OPEN_BELOW = 0.6, 0.4  # the same for gripper.closed
_OPEN_MARGIN_M = 0.005
_STEP_M = 0.004  # a wish that differs by less is no new one
_CLOSED = 0.0
_FORCE_MAX_N = 70.0  # what the Franka Hand takes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grasp:
    """How the hand closes.

    `force_n`, `speed_m_s`; `epsilon_m`: whatever stands at most this far apart between the fingers counts as grasped (0.08: anything).
    `widths`: a width between the thresholds moves the fingers there, unless they hold something narrower; else it changes nothing.
    """

    force_n: float
    speed_m_s: float = 0.1
    epsilon_m: float = 0.08
    widths: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.force_n <= _FORCE_MAX_N:
            raise ConfigError(f"grasp.force_n = {self.force_n}, expected above 0, at most {_FORCE_MAX_N} N")
        if not 0 < self.speed_m_s <= 0.1:
            raise ConfigError(f"grasp.speed_m_s = {self.speed_m_s}, expected above 0, at most 0.1 m/s")
        if not 0 < self.epsilon_m <= 0.1:
            raise ConfigError(f"grasp.epsilon_m = {self.epsilon_m}, expected above 0, at most 0.1 m")


class FrankaGripper:
    """Opens, grasps with force and, on request, moves to widths.

    Raises:
        DeviceError: no hand answers at `address`, or homing failed.
    """

    def __init__(self, address: str, gripper: Gripper, grasp: Grasp, *, timeout_s: float, homing: bool = False) -> None:
        hint = "is a Franka Hand mounted and enabled in Desk?"
        self._hand = call(f"franka hand at {address}", lambda: franky.Gripper(address), timeout_s, hint)
        if homing:
            call(f"franka hand at {address}: homing", self._hand.homing, _HOMING_S, hint)
        self._address = address
        self._grasp, self._open_m = grasp, gripper.width_max_m
        self._width_m = float(call(f"franka hand at {address}: state", lambda: self._hand.width, timeout_s, hint))
        self._wanted_m: float | None = None  # _CLOSED is a grasp
        self._done_m: float | None = None
        self._closing = threading.Event()
        self._wake = threading.Event()
        self.fault = ""
        self._thread = threading.Thread(target=self._work, name=f"franka hand {address}", daemon=True)
        self._thread.start()

    @property
    def width_m(self) -> float:
        """The opening between the fingers at the last reading (every 30 ms)."""
        return self._width_m

    def want_width(self, width_m: float) -> None:
        """Grasps below 0.03 m, opens above 0.05 m; between, see `Grasp.widths`."""
        if width_m < _CLOSE_BELOW_M:
            self._want(_CLOSED)
        elif self._grasp.widths:
            holds = self._done_m == _CLOSED and width_m < self._width_m + _OPEN_MARGIN_M
            if not holds and (self._wanted_m is None or abs(width_m - self._wanted_m) > _STEP_M):
                self._want(min(width_m, self._open_m))
        elif width_m > _OPEN_ABOVE_M:
            self._want(self._open_m)

    def want_closed(self, closed: float) -> None:
        """Grasps above 0.6, opens below 0.4, keeps the last wish between."""
        if closed > _CLOSE_ABOVE or closed < _OPEN_BELOW:
            self._want(_CLOSED if closed > _CLOSE_ABOVE else self._open_m)

    def resync(self) -> None:
        """Forgets a grasp that is none: somebody else (a person, a simulator's reset) has opened the hand since."""
        if self._done_m == _CLOSED == self._wanted_m and self._width_m > self._open_m - _OPEN_MARGIN_M:
            self._done_m = self._wanted_m = None

    def close(self) -> None:
        """Ends the thread; the hand keeps what it holds. Idempotent."""
        self._closing.set()
        self._wake.set()
        self._thread.join(1.5)

    def _want(self, width_m: float) -> None:
        if width_m != self._wanted_m:
            self._wanted_m = width_m
            self._wake.set()

    def _work(self) -> None:
        """Carries out the newest wish, one command at a time: stopping a pending one makes later calls take seconds."""
        pending: franky.BoolFuture | None = None
        try:
            while not self._closing.is_set():
                self._width_m = float(self._hand.state.width)
                if pending is not None:
                    if not pending.wait(0.0):
                        self._closing.wait(_PERIOD_S)
                        continue
                    if not pending.get():
                        what = "grasp" if self._done_m == _CLOSED else f"moving to {self._done_m:.3f} m"
                        _log.warning("franka hand at %s: %s did not succeed, width %.3f m", self._address, what, self._width_m)
                    pending = None
                wanted_m = self._wanted_m
                if wanted_m is not None and wanted_m != self._done_m:
                    self._done_m, pending = wanted_m, self._begin(wanted_m)
                    continue
                self._wake.wait(_PERIOD_S)
                self._wake.clear()
        except FRANKY_ERRORS as error:
            self.fault = f"franka hand at {self._address}: {error}"
            _log.error(self.fault)

    def _begin(self, width_m: float) -> franky.BoolFuture:
        grasp = self._grasp
        if width_m == _CLOSED:
            return self._hand.grasp_async(_CLOSED, grasp.speed_m_s, float(grasp.force_n), grasp.epsilon_m, grasp.epsilon_m)
        return self._hand.move_async(width_m, grasp.speed_m_s)
