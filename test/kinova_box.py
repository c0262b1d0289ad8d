"""A simulated Gen3 base over an arm without physics, stepped in real time by a thread of the test: `KinovaBox(address)`.

And the words in which its tests drive the arm.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from driving import command

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import VlaError
from vla_ros.robots.kinova import Kinova
from vla_ros.sim.kortex_box import KortexBox
from vla_ros.sim.plant import KinematicPlant

ROBOT = load_embodiment("kinova").robots["arm"]
POSITIONS = tuple(f"{joint}.position" for joint in ROBOT.joints)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)
HOME = np.array(ROBOT.home_rad)
PERIOD_S = 0.025
# a busy machine may keep a thread waiting; that is the machine's fault and not the driver's
PATIENT = {"stale_after_s": 0.4}
_STEP_S = 0.002


class KinovaBox:
    """Context manager. `box` is the firmware, `plant` the arm."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.plant = KinematicPlant(ROBOT)
        self.box = KortexBox(self.plant, {"address": address})
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> KinovaBox:
        self.box.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ending.set()
        self._thread.join()
        self.box.close()

    def _run(self) -> None:
        last_s, due_s = time.monotonic(), 0.0
        while not self._ending.wait(_STEP_S):
            now_s = time.monotonic()
            last_s, due_s = now_s, min(due_s + now_s - last_s, 0.1)
            while due_s >= _STEP_S:
                self.box.step(_STEP_S)
                self.plant.step(_STEP_S)
                due_s -= _STEP_S


def drive(arm: Kinova, channels: tuple[str, ...], target, until, timeout_s: float = 10.0) -> None:
    """Sends target() every period until `until()`."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"still under way after {timeout_s:g} s: {arm.read().position}"
        command(arm, channels, target())
        time.sleep(PERIOD_S)


def standing(arm: Kinova) -> bool:
    return np.abs(arm.read().velocity).max() < 0.01


def error_of(arm: Kinova, data, channels: tuple[str, ...] = VELOCITIES) -> VlaError | None:
    try:
        command(arm, channels, data)
    except VlaError as error:
        return error
    return None
