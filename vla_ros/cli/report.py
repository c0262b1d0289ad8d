"""The plots of a rollout: what was predicted against what was executed, and the figures of the loop over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_ros.cli.record import Outcome, RolloutRecord
from vla_ros.core.channels import ARMS, GRIPPERS, split
from vla_ros.core.errors import DataError
from vla_ros.core.rotations import conjugate, multiply, quat_to_rotvec, rotvec_to_quat
from vla_ros.core.types import Action, ActionChunk, Proprioception

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#d1495b", "#2e8b57", "#2f6fde", "#b8860b", "#7b4fb5", "#158a94", "#5b5b5b")

_LABELS = {"x": "position (m)", "rx": "turn (rad)", "position": "joint (rad)", "velocity": "joint (rad/s)", "width": "gripper (m)"}
_HEIGHTS = {"rx": 1.3, "closed": 0.6, "width": 0.8}  # of an axis, against 2.4 for the rest
_FINE = {"linewidth": 0.8, "markersize": 3}


def write_plots(record: RolloutRecord, outcome: Outcome, path: Path) -> None:
    """Writes the picture: targets, gripper, latency, boundary jumps, tick times.

    Raises:
        DataError: the record holds no chunk.
    """
    if not record.chunks:
        raise DataError("no action chunk was recorded, so there is nothing to plot; did the policy run?")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = record.chunks[0].channels
    rows = [(_ylabel(group), group) for group in _groups(names)]
    figure, axes = pyplot.subplots(
        len(rows) + 2, 1, figsize=(12, 2.0 * len(rows) + 4.6), sharex=True, layout="constrained",
        height_ratios=[*(_HEIGHTS.get(group[0].split(".")[-1], 2.4) for _, group in rows), 1.3, 1.3],
    )  # fmt: skip
    for axis, (label, group) in zip(axes, rows, strict=False):
        _plot_channels(axis, record, group)
        axis.set_ylabel(label)
    figure.suptitle(_title(outcome), fontsize=12, x=0.01, ha="left", wrap=True)
    _plot_latency(axes[-2], record)
    _plot_jumps(axes[-1], record, outcome)
    axes[-1].set_xlabel("time since the rollout began (s)")
    axes[-1].set_xlim(0.0, max(record.duration_s, 0.1))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.08)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _groups(channels: Sequence[str]) -> list[list[str]]:
    """Channels that share an axis, arm by arm: positions of the TCP, its rotation vector, joints, grippers; empty ones left out."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for arm in ("", *ARMS):
        for kind in ("m", "rad", "joint", "gripper"):
            kinds[arm, kind] = []
    for name in channels:
        arm, bare = split(name)
        last = bare.split(".")[-1]
        kind = "gripper" if bare in GRIPPERS else "m" if last in ("x", "y", "z") else "rad" if last in ("rx", "ry", "rz") else "joint"
        kinds[arm, kind].append(name)
    return [group for group in kinds.values() if group]


def _ylabel(group: Sequence[str]) -> str:
    last = group[0].split(".")[-1]
    return _LABELS.get(last, "gripper")


def _plot_channels(axis: Axes, record: RolloutRecord, group: Sequence[str]) -> None:
    """Faint: every chunk as it was predicted; a dot where it begins; bold: executed; dashed: measured."""
    from matplotlib.collections import LineCollection

    start = _start_rotation(record, group)
    chunks = [chunk for chunk in record.chunks if set(group) <= set(chunk.channels)]
    predicted = [_prediction(record, chunk, group, start) for chunk in chunks]
    measured = _series(record, record.proprioception, group, start)
    executed = _series(record, record.executed, group, start)
    for k, (name, colour) in enumerate(zip(group, cycle(_COLOURS), strict=False), 1):
        lines = [rows[:, [0, k]] for rows in predicted if len(rows)]
        axis.add_collection(LineCollection(lines, colors=colour, alpha=0.25, linewidths=0.8))
        axis.plot([line[0, 0] for line in lines], [line[0, 1] for line in lines], ".", color=colour, markersize=3, alpha=0.45)
        axis.plot(measured[:, 0], measured[:, k], "--", color=colour, linewidth=0.9, alpha=0.8)
        style = "steps-post" if name.endswith("closed") else "default"
        axis.plot(executed[:, 0], executed[:, k], color=colour, linewidth=1.8, label=name.removesuffix(".position"), drawstyle=style)
    axis.plot([], [], color="0.4", alpha=0.4, linewidth=0.8, label="predicted chunks")
    if len(measured):
        axis.plot([], [], "--", color="0.4", linewidth=0.9, label="measured")
    _legend(axis)


def _prediction(record: RolloutRecord, chunk: ActionChunk, group: Sequence[str], start: np.ndarray | None) -> np.ndarray:
    """Returns the rows of one chunk that lie in the rollout, [K, 1 + len(group)]: s, values."""
    values = chunk.data[:, [chunk.channels.index(name) for name in group]]
    times = record.seconds(chunk.stamp_ns) + np.arange(len(values)) * chunk.dt_s
    rows = np.column_stack([times, _turned(values, start)])
    return rows[times <= record.duration_s]


def _series(
    record: RolloutRecord, samples: Sequence[Action | Proprioception], group: Sequence[str], start: np.ndarray | None
) -> np.ndarray:
    """Returns channels over time, [K, 1 + len(group)]: s, values; K = 0 where the samples lack them."""
    rows = [
        (record.seconds(sample.stamp_ns), *sample.data[[sample.channels.index(name) for name in group]])
        for sample in samples
        if set(group) <= set(sample.channels) and record.start_ns <= sample.stamp_ns <= record.end_ns
    ]
    series = np.array(sorted(rows)).reshape(-1, 1 + len(group))
    series[:, 1:] = _turned(series[:, 1:], start)
    return series


def _start_rotation(record: RolloutRecord, group: Sequence[str]) -> np.ndarray | None:
    """Rotations are shown as the turn since this one: a gripper that points down is near +-pi, where the numbers flip."""
    if not group[0].endswith(".rx"):
        return None
    executed = _series(record, record.executed, group, None)
    return executed[0, 1:] if len(executed) else record.chunks[0].data[0, [record.chunks[0].channels.index(name) for name in group]]


def _turned(values: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    """Rotation vectors [K, 3] as seen from the rotation `start`; other values as they are."""
    if start is None:
        return values
    return quat_to_rotvec(multiply(conjugate(rotvec_to_quat(start)), rotvec_to_quat(values)))


def _legend(axis: Axes, handles: Sequence | None = None) -> None:
    """Above the axis, where it hides nothing."""
    found = {} if handles is None else {"handles": handles}
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), fontsize=8, ncols=9, frameon=False, borderpad=0.1, **found)


def _plot_latency(axis: Axes, record: RolloutRecord) -> None:
    times = [record.seconds(sample.stamp_ns) for sample in record.status]
    chunk_times = [record.seconds(stamp) for stamp in record.chunk_arrival_ns]
    axis.plot(times, [s.observation_age_ms for s in record.status], color="#b8860b", linewidth=1.2, label="observation age at use")
    axis.plot(chunk_times, [c.inference_s * 1e3 for c in record.chunks], ".-", color="#2f6fde", label="inference", **_FINE)
    for before, after in pairwise(record.status):
        if before.hold_reason:
            axis.axvspan(record.seconds(before.stamp_ns), record.seconds(after.stamp_ns), color="#d1495b", alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0.0)
    axis.set_ylabel("latency (ms)")
    _legend(axis)


def _plot_jumps(axis: Axes, record: RolloutRecord, outcome: Outcome) -> None:
    times = [record.seconds(sample.stamp_ns) for sample in record.status]
    axis.plot(times, [s.boundary_jump_m * 1e3 for s in record.status], ".-", color="#2e8b57", label="jump (mm)", **_FINE)
    axis.set_ylabel("jump (mm)")
    axis.set_ylim(bottom=0.0)
    turn = axis.twinx()
    turn.plot(times, [s.boundary_jump_rad * 1e3 for s in record.status], ".-", color="#7b4fb5", label="jump (mrad)", **_FINE)
    turn.set_ylabel("jump (mrad)")
    turn.set_ylim(bottom=0.0)
    turn.spines["top"].set_visible(False)
    handles = axis.get_legend_handles_labels()[0] + turn.get_legend_handles_labels()[0]
    _legend(axis, handles)
    late = outcome.statistics.get("tick_late_ms", {})
    if late:
        text = "control tick late: " + ", ".join(f"{name} {value:.2f} ms" for name, value in late.items() if value is not None)
        axis.text(0.0, 1.02, text, transform=axis.transAxes, fontsize=8, va="bottom")


def _title(outcome: Outcome) -> str:
    reason = f" ({outcome.reason})" if outcome.reason and not outcome.success else ""
    return f'"{outcome.instruction}": {outcome.outcome.replace("_", " ")}{reason}, {outcome.duration_s:.1f} s'
