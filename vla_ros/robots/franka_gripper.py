"""The Franka Hand in a thread of its own: its calls block, its commands must not come at every tick."""

from __future__ import annotations

import logging
import threading

from vla_ros.core.embodiment import Gripper
from vla_ros.robots.franka_link import FRANKY_ERRORS, call, franky

_PERIOD_S = 0.03
_SPEED_M_S = 0.1
# A width below the first closes, above the second opens; between them the hand stays as it is.
_CLOSE_BELOW_M, _OPEN_ABOVE_M = 0.03, 0.05
_CLOSE_ABOVE, _OPEN_BELOW = 0.6, 0.4  # the same for gripper.closed
_OPEN_MARGIN_M = 0.005
_log = logging.getLogger(__name__)


class FrankaGripper:
    """Opens fully or grasps with force; between the two thresholds of `want_*` nothing changes.

    Raises:
        DeviceError: no hand answers at `address`.
    """

    def __init__(self, address: str, gripper: Gripper, *, timeout_s: float, homing: bool = False) -> None:
        hint = "is a Franka Hand mounted and enabled in Desk?"
        self._hand = call(f"franka hand at {address}", lambda: franky.Gripper(address), timeout_s, hint)
        if homing:
            call(f"franka hand at {address}: homing", self._hand.homing, 15.0, hint)
        self._address = address
        self._gripper = gripper
        self._width_m = float(call(f"franka hand at {address}: state", lambda: self._hand.width, timeout_s, hint))
        self._wanted: bool | None = None
        self._done: bool | None = None
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
        """Closes below 0.03 m, opens above 0.05 m, keeps the last wish between."""
        if width_m < _CLOSE_BELOW_M or width_m > _OPEN_ABOVE_M:
            self._want(width_m < _CLOSE_BELOW_M)

    def want_closed(self, closed: float) -> None:
        """Closes above 0.6, opens below 0.4, keeps the last wish between."""
        if closed > _CLOSE_ABOVE or closed < _OPEN_BELOW:
            self._want(closed > _CLOSE_ABOVE)

    def resync(self) -> None:
        """Forgets a grasp that is none: somebody else (a person, a simulator's reset) has opened the hand since."""
        if self._done and self._wanted and self._width_m > self._gripper.width_max_m - _OPEN_MARGIN_M:
            self._done = self._wanted = None

    def close(self) -> None:
        """Ends the thread; the hand keeps what it holds. Idempotent."""
        self._closing.set()
        self._wake.set()
        self._thread.join(1.5)

    def _want(self, closed: bool) -> None:
        if closed != self._wanted:
            self._wanted = closed
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
                        what = "grasp" if self._done else "open"
                        _log.warning("franka hand at %s: %s did not succeed, width %.3f m", self._address, what, self._width_m)
                    pending = None
                wanted = self._wanted
                if wanted is not None and wanted != self._done:
                    self._done, pending = wanted, self._begin(wanted)
                    continue
                self._wake.wait(_PERIOD_S)
                self._wake.clear()
        except FRANKY_ERRORS as error:
            self.fault = f"franka hand at {self._address}: {error}"
            _log.error(self.fault)

    def _begin(self, closed: bool) -> franky.BoolFuture:
        if closed:
            # both epsilons as wide as the hand: whatever the fingers meet counts as grasped
            return self._hand.grasp_async(0.0, _SPEED_M_S, float(self._gripper.force_n), 0.08, 0.08)
        return self._hand.move_async(float(self._gripper.width_max_m), _SPEED_M_S)
