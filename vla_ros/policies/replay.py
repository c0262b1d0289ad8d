"""Plays the actions of a recorded rollout again: `vla up RIG --policy rollouts/<date-time>`. For tests of a rig without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_ros.core.channels import GRIPPERS, group, split
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, PolicyError
from vla_ros.core.rotations import nearest_rotvec
from vla_ros.core.types import Action, ActionChunk, Inference, Observation, PolicySpec

ACTIONS = "actions.json"
DT_S, ROWS = 0.05, 32


@dataclass(frozen=True)
class Stream:
    """What one robot executed: `data` [K, D] absolute targets, row k at `times_s[k]` after the beginning."""

    channels: tuple[str, ...]
    times_s: np.ndarray
    data: np.ndarray

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """Returns the targets [T, D] at `times_s` [T]: between rows linear, grippers as last told; held before and after."""
        before = np.clip(np.searchsorted(self.times_s, times_s, side="right") - 1, 0, len(self.times_s) - 1)
        columns = []
        for column, channel in enumerate(self.channels):
            values = self.data[:, column]
            step = split(channel)[1] in GRIPPERS
            columns.append(values[before] if step else np.interp(times_s, self.times_s, values))
        return np.stack(columns, axis=1)


def write_actions(path: Path, embodiment: str, executed: Sequence[Action], start_ns: int) -> None:
    """Writes what the robots executed since `start_ns` (ns since the epoch)."""
    streams: dict[tuple[str, ...], list[Action]] = {}
    for action in executed:
        streams.setdefault(action.channels, []).append(action)
    rows = [
        {
            "channels": channels,
            "times_s": [round((action.stamp_ns - start_ns) * 1e-9, 6) for action in actions],
            "data": [[round(float(value), 9) for value in action.data] for action in actions],
        }
        for channels, actions in streams.items()
    ]
    path.write_text(json.dumps({"embodiment": embodiment, "streams": rows}) + "\n", encoding="utf-8")


class Replay:
    """Implements `core.interfaces.Policy`. The recording begins with the first observation after `reset`.

    Whether its channels are those of the embodiment's control mode is checked with every chunk, as for any policy.
    """

    def __init__(self, embodiment: Embodiment, streams: Sequence[Stream], name: str = "replay") -> None:
        channels = tuple(channel for stream in streams for channel in stream.channels)
        self.spec = PolicySpec(name, embodiment.name, embodiment.cameras, (), channels, ROWS, DT_S)
        self._streams = tuple(streams)
        self._start_ns: int | None = None
        self._sequence = 0

    @classmethod
    def load(cls, folder: Path, embodiment: Embodiment) -> Replay:
        """Reads `actions.json` of a rollout's folder. Raises PolicyError with the file and what is wrong in it."""
        path = folder / ACTIONS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            streams = [_stream(item) for item in content["streams"]]
            recorded = content["embodiment"]
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise PolicyError(f"{path}: not a recording of actions ({error!r}); vla rollout writes one") from None
        if recorded != embodiment.name:
            raise PolicyError(f"{path}: recorded on embodiment '{recorded}', this rig has '{embodiment.name}'")
        if not streams:
            raise PolicyError(f"{path}: it holds no actions; the rollout ended before the robot moved")
        return cls(embodiment, streams, f"replay of {folder.name}")

    def reset(self) -> None:
        """Rewinds."""
        self._start_ns, self._sequence = None, 0

    def infer(self, observation: Observation) -> Inference:
        """Returns what was executed from this instant on; after the end the last targets stay."""
        if self._start_ns is None:
            self._start_ns = observation.stamp_ns
        times_s = (observation.stamp_ns - self._start_ns) * 1e-9 + DT_S * np.arange(ROWS)
        rows = np.concatenate([stream.at(times_s) for stream in self._streams], axis=1)
        spec = self.spec
        chunk = ActionChunk(observation.stamp_ns, DT_S, spec.channels, rows, self._sequence, spec.name, spec.embodiment)
        self._sequence += 1
        return Inference(chunk)


def _stream(item: Mapping[str, object]) -> Stream:
    channels = tuple(str(name) for name in item["channels"])
    times_s, data = np.array(item["times_s"], dtype=np.float64), np.array(item["data"], dtype=np.float64)
    if data.shape != (len(times_s), len(channels)) or not len(times_s):
        raise ValueError(f"data {data.shape} for {len(times_s)} times and {len(channels)} channels")
    if not (np.isfinite(data).all() and np.isfinite(times_s).all()) or (np.diff(times_s) < 0).any():
        raise ValueError("times that run backwards, NaN or infinity")
    for columns in group(channels).rotations:  # one way round for the whole recording, so that it can be interpolated
        for row in range(1, len(data)):
            data[row, columns] = nearest_rotvec(data[row, columns], data[row - 1, columns])
    return Stream(channels, times_s, data)
