"""A device of test/contract in a process of its own that writes down where the arm is, every 2 ms by this machine's clock.

`python robot_device.py FILE DEVICE EMBODIMENT ARM OPTIONS_JSON`, otherwise as test/contract/box.py; `clear` also completes the file.
A record is a stamp (ns since the epoch) and the joint positions (rad), all float64.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTRACT = Path(__file__).resolve().parent.parent / "test" / "contract"
sys.path.insert(0, str(CONTRACT))

from box import Device, FirmwareDevice, serve  # noqa: E402  a folder of its own


class Recorded:
    """A `box.Device` around another one."""

    def __init__(self, file: Path, device: Device, position: Callable[[], np.ndarray]) -> None:
        self._file, self._device, self._position = file.open("wb"), device, position
        self.start, self.inject = device.start, device.inject

    def step(self) -> float:
        speed = self._device.step()
        self._file.write(np.array([time.time_ns(), *self._position()], dtype=np.float64).tobytes())
        return speed

    def clear(self) -> None:
        self._device.clear()
        self._file.flush()

    def close(self) -> None:
        self._device.close()
        self._file.close()


def _device(program: str, embodiment: str, arm: str, options: dict[str, object]) -> tuple[Device, Callable[[], np.ndarray]]:
    """The device and where its arm is."""
    if program == "franka_device.py":
        from franka_device import FrankaDevice

        franka = FrankaDevice(options["address"])
        return franka, lambda: franka._robot.inner_state.q
    if program == "trajectory_controller.py":
        from trajectory_controller import TrajectoryController

        device = TrajectoryController(embodiment, arm, options)
    else:
        device = FirmwareDevice(program, embodiment, arm, options)
    return device, lambda: device._plant.measure().position


if __name__ == "__main__":
    serve(Recorded(Path(sys.argv[1]), *_device(*sys.argv[2:5], json.loads(sys.argv[5]))))
