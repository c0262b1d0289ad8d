"""Devices and policies that cost nothing or a known amount, so that a benchmark measures the path between them."""

from __future__ import annotations

import time

import numpy as np

from vla_ros.core.embodiment import Embodiment, RobotDescription
from vla_ros.core.types import Action, ActionChunk, Frame, Inference, Intrinsics, Observation, PolicySpec, RobotState

CAMERAS = ("front", "wrist", "side")
TCP = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.closed")


class NoiseCamera:
    """A camera of random pictures at a steady rate: nothing to render, everything to carry."""

    def __init__(self, name: str, width: int = 640, height: int = 480, fps: float = 30.0) -> None:
        self._frame_id = f"{name}_color_optical_frame"
        self._period_s = 1.0 / fps
        self._images = [np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8) for i in range(4)]
        self._intrinsics = Intrinsics(width, height, 600.0, 600.0, width / 2, height / 2)
        self._number = 0
        self._next_s = 0.0

    def start(self) -> None:
        self._next_s = time.monotonic()

    def read(self) -> Frame | None:
        wait_s = self._next_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        self._next_s += self._period_s
        self._number += 1
        image = self._images[self._number % len(self._images)]
        return Frame(time.time_ns(), image, self._number - 1, self._frame_id, self._intrinsics)

    def stop(self) -> None:
        """Nothing to stop."""


class StillRobot:
    """An arm that stays at home, whatever it is told."""

    def __init__(self, robot: RobotDescription) -> None:
        self._robot = robot

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> RobotState:
        home = np.array(self._robot.home_rad, dtype=float)
        return RobotState(time.time_ns(), tuple(self._robot.joints), home, np.zeros_like(home), np.zeros_like(home), 0.08)

    def command(self, action: Action) -> Action:
        return action

    def stop(self) -> None:
        """It never moves."""

    recover = close = stop


class StillPolicy:
    """Stays where the arm is, in 50 rows; no work at all."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.spec = PolicySpec(type(self).__name__, embodiment.name, CAMERAS, TCP[:6], TCP, 50, 0.02)
        self._sequence = 0

    def reset(self) -> None:
        self._sequence = 0

    def infer(self, observation: Observation) -> Inference:
        pose = observation.proprioception.select(TCP[:6])
        data = np.tile(np.append(pose, 0.0), (self.spec.horizon, 1))
        self._sequence += 1
        return Inference(
            ActionChunk(observation.stamp_ns, self.spec.dt_s, TCP, data, self._sequence - 1, self.spec.name, self.spec.embodiment)
        )


class BusyPolicy(StillPolicy):
    """The same after a convolutional network over three 128 x 128 pictures on one thread: what a small policy costs."""

    def __init__(self, embodiment: Embodiment) -> None:
        super().__init__(embodiment)
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._torch = torch
        layers = [
            torch.nn.Conv2d(3, 32, 8, 4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 128, 3, 2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(128, 128, 3),
        ]
        self._network = torch.nn.Sequential(*layers).eval()

    def infer(self, observation: Observation) -> Inference:
        torch = self._torch
        pictures = np.stack([observation.frames[name].image[:384:3, :384:3] for name in CAMERAS])
        with torch.inference_mode():
            for _ in range(4):
                self._network(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
        return super().infer(observation)
