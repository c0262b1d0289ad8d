"""What every driver test does: waits for something with a deadline, sends a command that is for now."""

from __future__ import annotations

import time

import pytest

from vla_ros.core.interfaces import Robot
from vla_ros.core.types import Action


def wait_for(condition, what: str, timeout_s: float = 15.0):
    """Polls until `condition()` is true and returns it; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    pytest.fail(f"not within {timeout_s:g} s: {what}")


def command(arm: Robot, channels: tuple[str, ...], data) -> Action:
    return arm.command(Action(channels, data, time.time_ns()))
