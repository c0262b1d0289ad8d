"""franky as this driver uses it: its errors, calls that cannot block for ever, and its words for why an arm does not move."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vla_ros.core.errors import DeviceError, NotInstalled

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
LINK_ERRORS = (franky.NetworkException, franky.ProtocolException)
_FAULT_MODES = {
    franky.RobotMode.Reflex: "reflex",
    franky.RobotMode.UserStopped: "user stop is pressed",
    franky.RobotMode.Guiding: "guiding: somebody leads it by hand",
    franky.RobotMode.Other: "not operational: brakes closed or emergency stop",
}
_ERROR_NAMES = tuple(name for name in dir(franky.Errors) if not name.startswith("_"))
# What stands in libfranka's sentence, and the one word for it; the first that fits.
_REASONS = (
    ("communication_constraints_violation", "communication"),
    ("limits_violation", "joint_limit"),
    ("emergency", "estop"),
    ("user stop", "user_stop"),
    ("safety function", "user_stop"),
    ("guiding", "guiding"),
    ("reflex", "reflex"),
)
_log = logging.getLogger(__name__)


def fault_of(state: franky.RobotState) -> str:
    """Returns why the control box does not move the arm ("reflex: cartesian_reflex"), "" when it would."""
    mode = _FAULT_MODES.get(state.robot_mode, "")
    if not mode:
        return ""
    errors = [name for name in _ERROR_NAMES if getattr(state.current_errors, name)]
    return f"{mode}: {', '.join(errors)}" if errors else mode


def reason_of(fault: str) -> str:
    """Returns the one word for a fault: communication, joint_limit, user_stop, estop, guiding, reflex, else fault."""
    return next((word for part, word in _REASONS if part in fault.lower()), "fault")


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
            outcome["error"] = str(error)
        finally:
            done.set()

    threading.Thread(target=work, name=f"franka {what}", daemon=True).start()
    if not done.wait(timeout_s):
        raise DeviceError(f"{what}: no answer within {timeout_s:g} s; {hint}", "device")
    if "error" in outcome:
        raise DeviceError(f"{what}: {outcome['error']}; {hint}", "device")
    return outcome["result"]


def open_robot(address: str, torque_threshold_nm: float, force_threshold_n: float, timeout_s: float, hint: str) -> franky.Robot:
    """Connects, with real-time priority where the kernel is PREEMPT_RT. Raises DeviceError."""
    config = franky.RealtimeConfig.Enforce
    if not realtime_kernel():
        _log.info("%s: no PREEMPT_RT kernel, libfranka runs without real-time priority", address)
        config = franky.RealtimeConfig.Ignore
    thresholds = {"default_torque_threshold": torque_threshold_nm, "default_force_threshold": force_threshold_n}
    return call(f"franka at {address}", lambda: franky.Robot(address, realtime_config=config, **thresholds), timeout_s, hint)


def realtime_kernel() -> bool:
    """Whether this kernel is PREEMPT_RT, which libfranka asks for unless told otherwise."""
    flag = Path("/sys/kernel/realtime")
    return flag.is_file() and flag.read_text().strip() == "1"
