"""What `vla doctor` checks of the hardware. A device that is not there is no failure."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from vla_ros.cli.checks import Check, last_line, run_python


def realtime() -> Check:
    """A real Franka wants a real-time kernel; without one franky ignores the deadline and the robot may stop by itself."""
    if Path("/sys/kernel/realtime").is_file() or "PREEMPT_RT" in os.uname().version:
        return Check("kernel", "ok", f"{os.uname().release}, real-time")
    fix = "for a real Franka: a PREEMPT_RT kernel (Ubuntu: sudo pro enable realtime-kernel)"
    return Check("kernel", "absent", f"{os.uname().release}, not real-time", fix)


def realsense() -> Check:
    """Intel RealSense cameras on USB, by vendor number."""
    products = [path.with_name("product") for path in Path("/sys/bus/usb/devices").glob("*/idVendor") if path.read_text().strip() == "8086"]
    names = [path.read_text().strip() for path in products if path.is_file() and "RealSense" in path.read_text()]
    if not names:
        return Check("RealSense", "absent", "none on USB")
    if importlib.util.find_spec("pyrealsense2") is None:
        return Check("RealSense", "advice", ", ".join(names), f"{sys.executable} -m pip install pyrealsense2")
    return Check("RealSense", "ok", ", ".join(names))


def can() -> Check:
    """CAN interfaces, which some arms speak; type 280 is ARPHRD_CAN."""
    found = [path.parent for path in Path("/sys/class/net").glob("*/type") if path.read_text().strip() == "280"]
    if not found:
        return Check("CAN", "absent", "no interface")
    down = [path.name for path in found if (path / "operstate").read_text().strip() == "down"]
    if down:
        return Check("CAN", "advice", f"{', '.join(down)} down", f"sudo ip link set {down[0]} up type can bitrate 1000000")
    return Check("CAN", "ok", ", ".join(path.name for path in found))


def serial() -> Check:
    """Serial adapters (leader arms, grippers) that this user may open."""
    found = sorted([*Path("/dev").glob("ttyUSB*"), *Path("/dev").glob("ttyACM*")])
    if not found:
        return Check("serial", "absent", "no /dev/ttyUSB* or /dev/ttyACM*")
    closed = [str(path) for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return Check("serial", "advice", f"no permission for {', '.join(closed)}", "sudo usermod -aG dialout $USER, then log in again")
    return Check("serial", "ok", ", ".join(map(str, found)))


def gpu() -> Check:
    """Whether torch sees a GPU."""
    status, output = run_python("import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')", timeout_s=60)
    if status != 0:
        return Check("torch", "failed", last_line(output), "make setup")
    name = last_line(output)
    if name:
        return Check("torch", "ok", name)
    hint = "TORCH='torch>=2.13' make setup" if shutil.which("nvidia-smi") else ""
    return Check("torch", "advice" if hint else "absent", "no GPU, policies run on the CPU", hint)
