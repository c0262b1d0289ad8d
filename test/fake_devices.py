"""Devices for tests, named by import path: a camera that can be lost, a table without physics."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.core.types import Frame, Intrinsics


class FakeCamera:
    """Gives a new picture at every `read` that comes a period after the last one; the faults are of all of them."""

    lost = silent = frozen = False
    made: list[FakeCamera]

    def __init__(self, name: str, width: int = 32, height: int = 24, fps: float = 50.0) -> None:
        self.name, self._period_s = name, 1 / fps
        self._shape, self._lens = (height, width, 3), Intrinsics(width, height, 30.0, 30.0, width / 2, height / 2)
        self._number, self._due_s, self.running = 0, 0.0, False

    def start(self) -> None:
        if type(self).lost:
            raise DeviceError(f"camera {self.name}: not on the bus; plug it in")
        self.running = True

    def read(self) -> Frame | None:
        if type(self).lost:
            raise DeviceError(f"camera {self.name}: unplugged")
        if time.monotonic() < self._due_s or type(self).silent:
            return None
        self._due_s = time.monotonic() + self._period_s
        self._number += not type(self).frozen
        return Frame(time.time_ns(), np.full(self._shape, self._number % 256, np.uint8), 1000 + self._number, "mine", self._lens)

    def stop(self) -> None:
        self.running = False


@dataclass
class Judged:
    success: bool = False
    failed: bool = False
    wrong_object: bool = False
    detail: str = "red block 0.2 m from the plate"
    steps_done: int = 0
    steps: int = 3


class FakeTable:
    """What the simulation node asks of a simulator."""

    judged = Judged()
    dead = False

    def __init__(self, rig) -> None:
        self.address, self.task, self.real_time_factor = rig.simulation.address, f"task {rig.simulation.seed}", 1.0
        self.moved: list[tuple] = []
        self.open = False

    def start(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False

    def judge(self) -> Judged:
        if type(self).dead:
            raise DeviceError("the simulation died")
        return type(self).judged

    def reset(self, seed: int, task: str = "") -> str:
        if task == "fly":
            raise ConfigError("'fly' is not a task")
        self.task = task or f"task {seed}"
        return self.task

    def move_object(self, name: str, dx_m: float, dy_m: float) -> str:
        self.moved.append((name, dx_m, dy_m))
        return name
