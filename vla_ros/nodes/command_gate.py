"""What stands between commands and one robot: who may drive, what is let through, when the robot holds and why. ROS-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum

from vla_ros.core.errors import DeviceError, StaleData, VlaError
from vla_ros.core.interfaces import Robot
from vla_ros.core.safety import Limiter
from vla_ros.core.types import Action, RobotState

NOBODY = "none"


class State(IntEnum):
    """The numbers of vla_msgs/RobotStatus."""

    DISCONNECTED = 0
    HOLD = 1
    FOLLOWING = 2
    STOPPED = 3


class CommandGate:
    """Follows the commands of one selected source; everything else ends in a safe hold that has a name.

    * A command of another source is counted and changes nothing.
    * A rejected command (NaN, limits, stale, ...) holds the robot; it follows again only after `select`.
    * No command for `timeout_s`, or a wish to hold, holds the robot; the next good command goes on.
    * `stop` and faults of the device latch until `recovered`; a dead link is `DISCONNECTED` until then.

    Args:
        robot: connected driver.
        limiter: its limits, also counts rejections.
        timeout_s: longest time between two commands, on the steady clock.
        log: told of every hold: (reason, sentence).
    """

    def __init__(self, robot: Robot, limiter: Limiter, timeout_s: float, log: Callable[[str, str], None]) -> None:
        self.state = State.HOLD
        self.source = NOBODY
        self.reason = ""
        self.detail = ""
        self.accepted = 0
        self.measured: RobotState | None = None
        self._robot = robot
        self._limiter = limiter
        self._timeout_ns = round(timeout_s * 1e9)
        self._log = log
        self._armed = False
        self._latched = ("", "")
        self._last_command_ns = 0

    @property
    def rejected(self) -> Counter[str]:
        """Rejected commands by name."""
        return self._limiter.rejected

    @property
    def clamped(self) -> Counter[str]:
        """Commands that were clamped, by name."""
        return self._limiter.clamped

    @property
    def shown(self) -> tuple[State, str, str, str]:
        """State, source, reason and detail."""
        return self.state, self.source, self.reason, self.detail

    def figures(self) -> dict[str, object]:
        """What diagnostics show."""
        counts = {f"rejected.{name}": count for name, count in self.rejected.items()}
        counts |= {f"clamped.{name}": count for name, count in self.clamped.items()}
        return {"source": self.source, "reason": self.reason, "detail": self.detail, "accepted": self.accepted, **counts}

    def update(self, steady_ns: int) -> RobotState | None:
        """Reads the robot and looks at the age of the last command; returns the measurement, None without a link."""
        if self.state == State.DISCONNECTED:
            return None
        try:
            self.measured = self._robot.read()
        except (StaleData, DeviceError) as error:
            self._lose(error)
            return None
        age_ns = steady_ns - self._last_command_ns
        if self.state == State.FOLLOWING and age_ns > self._timeout_ns:
            detail = f"no command from '{self.source}' for {age_ns * 1e-6:.0f} ms, limit {self._timeout_ns * 1e-6:.0f} ms"
            self.hold("command_timeout", detail)
        return self.measured

    def command(self, make: Callable[[], Action], source: str, now_ns: int, steady_ns: int) -> Action | None:
        """Lets one command through; returns what was really sent, None when it was not.

        Args:
            make: builds the action; may raise DataError.
            source: who sent it.
            now_ns: ROS time; steady_ns: steady time.
        """
        refusal = self._refusal(source)
        if refusal:
            self.rejected[refusal] += 1
            return None
        try:
            action = make()
        except VlaError as error:
            self._limiter.count(error)
            return self._reject(error)
        try:
            action = self._limiter.check(action, self.measured, now_ns)
        except VlaError as error:
            return self._reject(error)
        return self._send(action, steady_ns)

    def hold(self, reason: str, detail: str = "") -> None:
        """Holds the measured position. Does nothing to a robot that is stopped or gone; repeating it is free."""
        if self.state not in (State.HOLD, State.FOLLOWING) or (self.state, self.reason) == (State.HOLD, reason):
            return
        self._brake()
        if self.state != State.STOPPED:
            self._enter(State.HOLD, reason, detail)

    def select(self, source: str) -> str:
        """Gives the robot to `source` ("none": to nobody), through a safe hold; returns who had it.

        Raises:
            DeviceError: stopped or disconnected.
        """
        source, previous = source or NOBODY, self.source
        if source != NOBODY and self.state in (State.DISCONNECTED, State.STOPPED):
            raise DeviceError(f"the robot is {self.state.name.lower()} ({self.reason}: {self.detail}); call ~/recover first", self.reason)
        self.source, self._armed = source, source != NOBODY
        if self.state in (State.HOLD, State.FOLLOWING):
            self._brake()
            if self.state != State.STOPPED:
                self._enter(State.HOLD, "", "")
        return previous

    def stop(self, reason: str, detail: str) -> None:
        """Holds and stays so until `recovered`, also over a lost link."""
        self._latched = (reason, detail)
        self._armed = False
        if self.state != State.DISCONNECTED:
            self._brake()
            self._enter(State.STOPPED, *self._latched)

    def release(self) -> None:
        """Forgets the latch: the next `recovered` ends in HOLD. Call it when a person asks for recovery."""
        self._latched = ("", "")

    def recovered(self, error: VlaError | None) -> None:
        """Takes the outcome of `Robot.recover`: None ends in HOLD (STOPPED when latched); nobody drives until `select`."""
        if error is not None:
            if self.state != State.DISCONNECTED:
                self._enter(State.STOPPED, "recover_failed", str(error))
            return
        self._armed = False
        self.measured = None
        self._limiter.reset()
        self._enter(State.STOPPED if self._latched[0] else State.HOLD, *self._latched)

    def _refusal(self, source: str) -> str:
        if source != self.source or source == NOBODY:
            return "source"
        if self.state in (State.DISCONNECTED, State.STOPPED):
            return self.state.name.lower()
        return "" if self._armed and self.measured is not None else "not_following"

    def _send(self, action: Action, steady_ns: int) -> Action | None:
        try:
            executed = self._robot.command(action)
        except StaleData as error:
            self._lose(error)
            return None
        except DeviceError as error:
            self.stop(error.reason or "fault", str(error))
            return None
        except VlaError as error:
            self._limiter.count(error)
            return self._reject(error)
        self._last_command_ns = steady_ns
        self.accepted += 1
        if self.state != State.FOLLOWING:
            self.state, self.reason, self.detail = State.FOLLOWING, "", ""
        return executed

    def _reject(self, error: VlaError) -> None:
        """A command that may not be executed is no reason to skip it in silence: hold, and let the source be selected anew."""
        self._armed = False
        self.hold(error.reason or "channels", str(error))

    def _lose(self, error: VlaError) -> None:
        self._armed = False
        self._limiter.reset()
        self._enter(State.DISCONNECTED, error.reason or "link_lost", str(error))

    def _brake(self) -> None:
        self._limiter.reset()
        try:
            self._robot.stop()
        except VlaError as error:
            self._latched = (error.reason or "fault", str(error))
            self._armed = False
            self._enter(State.STOPPED, *self._latched)

    def _enter(self, state: State, reason: str, detail: str) -> None:
        if (state, reason, detail) != (self.state, self.reason, self.detail) and reason:
            self._log(reason, f"{state.name.lower()}: {reason}: {detail}")
        self.state, self.reason, self.detail = state, reason, detail
