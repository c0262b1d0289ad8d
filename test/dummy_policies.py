"""Policies for tests, named by import path. Each keeps the arm where it is, and most do one thing wrong."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec, SkillPlan

CHANNELS = (*TCP_POSE, "gripper.closed")


class Still:
    """Predicts that the arm stays where it is, and says so."""

    horizon, dt_s, channels, seconds = 16, 0.1, CHANNELS, 0.0

    def __init__(self, embodiment) -> None:
        self.spec = PolicySpec("still", embodiment.name, ("front", "wrist"), TCP_POSE, self.channels, self.horizon, self.dt_s)
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    def infer(self, observation: Observation) -> Inference:
        self.calls += 1
        time.sleep(self.seconds)
        row = np.append(observation.proprioception.select(TCP_POSE), 0.0)
        data = np.tile(row, (self.horizon, 1))
        plan = SkillPlan(observation.stamp_ns, ("reach", "hold"), 1, "hold", "I hold still")
        return Inference(self.change(ActionChunk(observation.stamp_ns, self.dt_s, self.channels, data, self.calls)), plan)

    def change(self, chunk: ActionChunk) -> ActionChunk:
        return chunk


class Rising(Still):
    """Rises by 10 mm/s from its first observation on. All chunks say the same, so an action shows for which instant it is."""

    def change(self, chunk: ActionChunk) -> ActionChunk:
        if self.calls == 1:
            self.start_ns = chunk.stamp_ns
        elapsed_s = (chunk.stamp_ns - self.start_ns) * 1e-9 + self.dt_s * np.arange(self.horizon)
        data = chunk.data.copy()
        data[:, 2] += 0.01 * elapsed_s
        return replace(chunk, data=data)


class NotFinite(Still):
    """Its fourth chunk holds a NaN."""

    def change(self, chunk: ActionChunk) -> ActionChunk:
        return replace(chunk, data=np.where(self.calls < 4, chunk.data, np.nan))


class WrongChannels(Still):
    channels = (*TCP_POSE[:5], "tcp.rw", "gripper.closed")


class Slow(Still):
    """Takes longer than its chunk lasts."""

    horizon, seconds = 4, 0.6


class Stopping(Still):
    """Takes so long for its fourth chunk that the third one runs out."""

    horizon = 5

    def change(self, chunk: ActionChunk) -> ActionChunk:
        time.sleep(30.0 if self.calls >= 4 else 0.0)
        return chunk


class Stale(Still):
    """Stamps its fourth chunk ten seconds too early."""

    def change(self, chunk: ActionChunk) -> ActionChunk:
        return replace(chunk, stamp_ns=chunk.stamp_ns - (10_000_000_000 if self.calls >= 4 else 0))


class Raising(Still):
    """Fails at its fourth call as foreign code fails."""

    def change(self, chunk: ActionChunk) -> ActionChunk:
        if self.calls >= 4:
            raise ZeroDivisionError("division by zero in the policy")
        return chunk


class Busy(Still):
    """Works hard for 30 ms a call, half of it in Python and half in torch, as a real policy does."""

    def infer(self, observation: Observation) -> Inference:
        import torch

        torch.set_num_threads(1)
        weights = torch.ones(400, 400)
        until = time.perf_counter() + 0.015
        while time.perf_counter() < until:
            sum(range(1000))
        until = time.perf_counter() + 0.015
        while time.perf_counter() < until:
            weights = weights @ weights / 400
        return super().infer(observation)
