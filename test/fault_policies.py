"""A policy for the fault tests: it circles without end, and an instruction such as "nan: circle" makes it go wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from dummy_policies import Still

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.types import ActionChunk, Inference, Observation

GOOD_CHUNKS = 6  # by then the arm moves
_RADIUS_M, _PERIOD_S = 0.06, 2.4  # never at rest, and never so far apart that a late chunk on a busy machine is a jump


def _shifted(chunk: ActionChunk, axis: int, by_m: float) -> ActionChunk:
    return replace(chunk, data=chunk.data + by_m * np.eye(chunk.data.shape[1])[axis])


FAULTS = {
    "nan": lambda chunk: replace(chunk, data=np.full_like(chunk.data, np.nan)),
    "channels": lambda chunk: replace(chunk, channels=(*chunk.channels[:5], "tcp.rw", "gripper.closed")),
    "stale": lambda chunk: replace(chunk, stamp_ns=chunk.stamp_ns - 10_000_000_000),
    "workspace": lambda chunk: _shifted(chunk, 2, -1.0),
    "jump": lambda chunk: _shifted(chunk, 2, -0.4),
}


class Saboteur(Still):
    """`<fault>: <anything>` circles for six chunks; all later ones have the fault. Without a fault it just circles."""

    def infer(self, observation: Observation) -> Inference:
        self.calls += 1
        if self.calls == 1:
            self.centre, self.start_ns = np.append(observation.proprioception.select(TCP_POSE), 0.0), observation.stamp_ns
        seconds = (observation.stamp_ns - self.start_ns) * 1e-9 + self.dt_s * np.arange(self.horizon)
        data = np.tile(self.centre, (self.horizon, 1))
        angle = 2 * np.pi * seconds / _PERIOD_S
        data[:, 0] += _RADIUS_M * (1 - np.cos(angle))
        data[:, 1] += _RADIUS_M * np.sin(angle)
        chunk = ActionChunk(observation.stamp_ns, self.dt_s, self.channels, data, self.calls)
        fault = observation.instruction.partition(": ")[0]
        return Inference(FAULTS[fault](chunk) if fault in FAULTS and self.calls > GOOD_CHUNKS else chunk)
