"""What the PiPer says about itself, in words. Numbers: protocol V2 of piper_sdk 0.6.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from piper_sdk.piper_msgs.msg_v2 import PiperMessage

ARM = {
    0x01: ("estop", "emergency stop"),
    0x02: ("no_solution", "no solution for the target"),
    0x03: ("singularity", "singular pose"),
    0x04: ("limit", "target beyond a joint limit"),
    0x05: ("joint_comm", "a joint does not answer"),
    0x06: ("brake", "a joint's brake is not released"),
    0x07: ("collision", "collision"),
    0x08: ("overspeed", "too fast while dragged"),
    0x09: ("joint_error", "a joint reports an error"),
    0x0A: ("device_error", "error of the controller"),
    0x0B: ("teaching", "teaching: recording"),
    0x0C: ("teaching", "teaching: playing back"),
    0x0D: ("teaching", "teaching: paused"),
    0x0E: ("overheated", "main controller too hot"),
    0x0F: ("overheated", "brake resistor too hot"),
    0xFF: ("device_error", "an error that piper_sdk does not know"),
}
DRIVE = {  # bits of a drive's state
    0x01: ("undervoltage", "supply too low"),
    0x02: ("overheated", "motor too hot"),
    0x04: ("overcurrent", "current too high"),
    0x08: ("overheated", "drive too hot"),
    0x10: ("collision", "collision protection"),
    0x20: ("joint_error", "drive error"),
    0x80: ("stalled", "stall protection"),
}
ENABLED = 0x40
_TAUGHT = (0x02, 0x06)  # control modes in which a person moves the arm, and commands are ignored


def drive_states(message: PiperMessage) -> list[int]:
    """Returns the state byte of each of the six drives."""
    return [getattr(message, f"arm_low_spd_feedback_{number}").foc_status_code for number in range(1, 7)]


def fault_of(message: PiperMessage, enabled: bool) -> tuple[str, str]:
    """Returns (reason, sentence), ("", "") when all is well. `enabled`: whether the drives should be."""
    status = message.arm_status_msgs
    state, code = int(status.arm_status), status.err_code
    if state:
        reason, text = ARM.get(state, ARM[0xFF])
        return reason, text + _joints(code)
    if code & 0x3F3F:
        return ("joint_comm", f"a joint does not answer{_joints(code)}") if code & 0x3F else ("limit", f"joint limit{_joints(code)}")
    if int(status.ctrl_mode) in _TAUGHT:
        return "teaching", "the teach button has the arm; commands are ignored"
    for number, drive in enumerate(drive_states(message), 1):
        for bit, (reason, text) in DRIVE.items() if drive & ~ENABLED else ():
            if drive & bit:
                return reason, f"joint {number}: {text}"
        if enabled and not drive & ENABLED:
            return "motor_disabled", f"joint {number} is disabled"
    return "", ""


def _joints(code: int) -> str:
    """The joints that an error code of 0x2A1 names: bits 8-13 angle limits, 0-5 communication."""
    numbers = [str(i + 1) for i in range(6) if code & (0x101 << i)]
    return f" (joint {', '.join(numbers)})" if numbers else ""
