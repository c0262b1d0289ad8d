"""Chunks on the time axis, stacked so that one query of all of them costs a few numpy calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.core import rotations
from vla_ros.core.channels import Groups
from vla_ros.core.types import ActionChunk

# Stamps are whole ns and dt rarely is: an instant this near to a row is that row (1 us moves nothing).
SNAP_NS = 1000


@dataclass(frozen=True)
class Placed:
    """One chunk with what interpolation needs per row: `steps` [T, D] to the next row (0 where columns are not linear),
    `quats` [T, R, 4], and `sides` [T, R, 4], `angles` [T, R]: row k turned by share u is quat cos(u angle) + side sin(u angle)."""

    number: int
    chunk: ActionChunk
    steps: np.ndarray
    quats: np.ndarray
    sides: np.ndarray
    angles: np.ndarray

    @property
    def order(self) -> tuple[int, int]:
        return self.chunk.stamp_ns, self.chunk.sequence


def place(number: int, chunk: ActionChunk, groups: Groups) -> Placed:
    """Prepares `chunk`; `number` tells it apart from every other."""
    steps = np.zeros_like(chunk.data)
    steps[:-1, groups.linear] = np.diff(chunk.data[:, groups.linear], axis=0)
    quats = rotations.rotvec_to_quat(chunk.data[:, groups.rotations])
    following = np.concatenate([quats[1:], quats[-1:]])
    cosine = np.sum(quats * following, axis=-1, keepdims=True)
    # q and -q are one rotation: of the two ways round take the short one
    following, cosine = np.where(cosine < 0, -following, following), np.abs(cosine)
    sides = following - cosine * quats
    sine = np.linalg.norm(sides, axis=-1, keepdims=True)
    return Placed(number, chunk, steps, quats, sides / np.maximum(sine, 1e-300), np.arctan2(sine, cosine)[..., 0])


@dataclass(frozen=True)
class Samples:
    """What n chunks say about an instant, oldest first.

    `values` [n, D] (rotation columns: the row before, see `quats`), `quats` [n, R, 4], `stamps_ns` [n], `ages_s` [n] since the observation.
    """

    values: np.ndarray
    quats: np.ndarray
    stamps_ns: np.ndarray
    ages_s: np.ndarray


class Timeline:
    """Chunks in the order of (stamp, sequence), whatever order they came in. Not thread-safe: the executor holds a lock."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.chunks: list[Placed] = []
        self._count = 0

    def add(self, chunk: ActionChunk, now_ns: int) -> str:
        """Places `chunk` and forgets those that ended before `now_ns`.

        Returns:
            "" for a chunk newer than all others, "reordered" for an older one (it is sorted in);
            "late" (it ended before `now_ns`) and "duplicate" (same stamp and sequence) are not kept.
        """
        if chunk.end_ns + SNAP_NS < now_ns:
            return "late"
        order = (chunk.stamp_ns, chunk.sequence)
        if any(placed.order == order for placed in self.chunks):
            return "duplicate"
        result = "reordered" if self.chunks and order < self.chunks[-1].order else ""
        kept = [placed for placed in self.chunks if placed.chunk.end_ns + SNAP_NS >= now_ns]
        self._count += 1
        self.chunks = sorted([*kept, place(self._count, chunk, self.groups)], key=lambda placed: placed.order)
        self._stack()
        return result

    def _stack(self) -> None:
        chunks = [placed.chunk for placed in self.chunks]
        lengths = np.array([chunk.data.shape[0] for chunk in chunks])
        self.numbers = np.array([placed.number for placed in self.chunks])
        self._stamps = np.array([chunk.stamp_ns for chunk in chunks], dtype=np.int64)
        self._from = self._stamps - SNAP_NS
        self._until = np.array([chunk.end_ns for chunk in chunks], dtype=np.int64) + SNAP_NS
        self._rates = 1e-9 / np.array([chunk.dt_s for chunk in chunks])
        self._snaps = SNAP_NS * self._rates
        self._offsets = np.cumsum(lengths) - lengths
        self._rows = np.concatenate([chunk.data for chunk in chunks])
        self._steps = np.concatenate([placed.steps for placed in self.chunks])
        self._quats = np.concatenate([placed.quats for placed in self.chunks])
        self._sides = np.concatenate([placed.sides for placed in self.chunks])
        self._angles = np.concatenate([placed.angles for placed in self.chunks])

    def live(self, t_ns: int) -> np.ndarray:
        """Returns the indices of the chunks that say something about `t_ns`, oldest first."""
        return ((self._from <= t_ns) & (self._until >= t_ns)).nonzero()[0] if self.chunks else np.empty(0, dtype=np.intp)

    def sample(self, t_ns: int | np.ndarray, index: np.ndarray) -> Samples:
        """Interpolates chunks `index` [n] at `t_ns` (one instant, or one each [n]); each must be live at its instant."""
        stamps = self._stamps[index]
        elapsed = t_ns - stamps
        position = elapsed * self._rates[index]
        nearest = np.rint(position)
        position = np.where(np.abs(position - nearest) <= self._snaps[index], nearest, position)
        before = position.astype(np.intp)
        share = position - before
        row = before + self._offsets[index]
        values = self._rows.take(row, axis=0) + share[:, None] * self._steps.take(row, axis=0)
        quats = self._quats[row]
        if quats.shape[1]:
            turn = (share[:, None] * self._angles[row])[..., None]
            quats = quats * np.cos(turn) + self._sides[row] * np.sin(turn)
        return Samples(values, quats, stamps, elapsed * 1e-9)

    def blend(self, samples: Samples, weights: np.ndarray) -> np.ndarray:
        """Returns the weighted mean [D]; `weights` [n] sum to 1.

        Grippers are the newest sample's, never a mean. Rotations are averaged in the tangent space of the newest sample.
        """
        newest = samples.values[-1]
        data = weights @ samples.values
        data[self.groups.grippers] = newest[self.groups.grippers]
        if len(self.groups.rotations):
            anchor = samples.quats[-1]
            if len(weights) > 1:
                anchor = rotations.mean_quat(samples.quats, weights, anchor)
            data[self.groups.rotations] = rotations.nearest_rotvec(rotations.quat_to_rotvec(anchor), newest[self.groups.rotations])
        return data

    def rotvecs(self, samples: Samples, reference: np.ndarray) -> np.ndarray:
        """Returns `values` [n, D] with interpolated rotation vectors, written with the turns nearest to `reference` [D]."""
        values = samples.values.copy()
        if len(self.groups.rotations):
            rotvecs = rotations.quat_to_rotvec(samples.quats)
            values[:, self.groups.rotations] = rotations.nearest_rotvec(rotvecs, reference[self.groups.rotations])
        return values
