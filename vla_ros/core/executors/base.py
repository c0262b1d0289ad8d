"""What every executor does: place chunks, choose among the live ones, blend, and keep the figures of each hand-over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from threading import Lock

import numpy as np

from vla_ros.core.channels import Groups, group
from vla_ros.core.errors import DataError
from vla_ros.core.executors.timeline import Samples, Timeline
from vla_ros.core.rotations import angle_between
from vla_ros.core.types import Action, ActionChunk, Prefix


@dataclass(frozen=True)
class Figures:
    """How the executor is doing.

    Attributes:
        boundary_jump_rad: newest hand-over to a newer chunk: largest difference, at that instant, between what the chunks used until then
            command and what is commanded with the new one; over joint positions and TCP rotations (geodesic). None before the first
            hand-over, when nothing older was live any more, and without such channels.
        boundary_jump_m: the same for TCP translation.
        prediction_age_s: age of the observation behind the last action; for ensembles the weighted mean. None before the first action.
        live: number of chunks that went into the last action; 0 when there was none.
        hand_overs: how many chunks have taken over, the first included; tells a new jump from an old one.
        refused: how many chunks came "late" (ended already, not kept), "duplicate" (same stamp and sequence, not kept)
            or "reordered" (older than another one; sorted in by its stamp).
    """

    boundary_jump_rad: float | None
    boundary_jump_m: float | None
    prediction_age_s: float | None
    live: int
    hand_overs: int
    refused: dict[str, int]


class Executor:
    """Base of all executors. `add` may come from the inference thread and `at` from the control timer: a lock is inside.

    Chunks are ordered by (stamp, sequence), never by arrival: a reordered chunk is sorted in by its stamp (an ensemble uses it, the others
    use it only while nothing newer is live), one that ended before the newest instant asked for is late and dropped, a duplicate is
    dropped. `at` may be asked for any instant, but chunks that ended before the newest instant asked for are gone.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._clear()

    def _clear(self) -> None:
        self._channels: tuple[str, ...] = ()
        self._timeline: Timeline | None = None
        self._now_ns = -(2**62)
        self._newest = 0
        self._used = np.empty(0, dtype=np.intp)
        self._jump: tuple[float | None, float | None] = (None, None)
        self._age_s: float | None = None
        self._live = 0
        self._hand_overs = 0
        self._refused: Counter[str] = Counter()

    def reset(self) -> None:
        """Forgets chunks, channels and figures; call it when a rollout starts."""
        with self._lock:
            self._clear()

    def add(self, chunk: ActionChunk) -> None:
        """Takes a chunk of absolute targets. Raises DataError when its channels are not those of the first chunk."""
        with self._lock:
            if self._timeline is None:
                self._timeline, self._channels = Timeline(group(chunk.channels)), chunk.channels
            if chunk.channels != self._channels:
                given, first = ", ".join(chunk.channels), ", ".join(self._channels)
                raise DataError(f"chunk {chunk.sequence}: channels {given}; this rollout began with {first}", "channels")
            refusal = self._timeline.add(chunk, self._now_ns)
            if refusal:
                self._refused[refusal] += 1

    def at(self, t_ns: int) -> Action | None:
        """Returns the action for the instant `t_ns`, or None where no chunk says anything (then: safe hold)."""
        with self._lock:
            self._now_ns = max(self._now_ns, t_ns)
            index = self._chosen(t_ns)
            self._live = len(index)
            if not len(index):
                return None
            timeline = self._timeline
            samples = timeline.sample(t_ns, index)
            weights = self._weights(samples)
            data = timeline.blend(samples, weights)
            numbers = timeline.numbers[index]
            if numbers[-1] != self._newest:
                self._hand_over(t_ns, data)
            self._newest, self._used = numbers[-1], numbers
            self._age_s = float(weights @ samples.ages_s)
        return Action(self._channels, data, t_ns)

    def prefix(self, t_ns: int, delay_steps: int) -> Prefix | None:
        """What the policy is to continue in a chunk with the stamp `t_ns`; None: this executor needs no continuation (see `rtc`)."""
        return None

    @property
    def figures(self) -> Figures:
        """The figures as they are now."""
        with self._lock:
            return Figures(*self._jump, self._age_s, self._live, self._hand_overs, dict(self._refused))

    def _chosen(self, t_ns: int) -> np.ndarray:
        if self._timeline is None:
            return self._used[:0]
        live = self._timeline.live(t_ns)
        return self._choose(t_ns, live) if len(live) else live

    def _choose(self, t_ns: int, live: np.ndarray) -> np.ndarray:
        """Which of the live chunks (indices, oldest first, at least one) make the action; the same order."""
        raise NotImplementedError

    def _weights(self, samples: Samples) -> np.ndarray:
        """Weights [n] of the chosen chunks, summing to 1."""
        return np.ones(1)

    def _hand_over(self, t_ns: int, data: np.ndarray) -> None:
        self._hand_overs += 1
        live = self._timeline.live(t_ns)
        old = live[np.isin(self._timeline.numbers[live], self._used)]
        if not len(old):
            self._jump = (None, None)
            return
        samples = self._timeline.sample(t_ns, old)
        self._jump = jump(self._timeline.groups, self._timeline.blend(samples, self._weights(samples)), data)


def jump(groups: Groups, before: np.ndarray, after: np.ndarray) -> tuple[float | None, float | None]:
    """Returns the largest (rad, m) difference between two rows [D]; None where no channel has that unit."""
    angles = [*np.abs(after[groups.joints] - before[groups.joints]), *angle_between(before[groups.rotations], after[groups.rotations])]
    lengths = np.linalg.norm(after[groups.translations] - before[groups.translations], axis=-1)
    return (float(max(angles)) if angles else None, float(max(lengths)) if len(lengths) else None)
