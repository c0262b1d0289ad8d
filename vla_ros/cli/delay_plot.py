"""The picture of `vla eval --delays`: what every executor makes of slower inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_ros.cli import tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Total = Mapping[str, object]
# what is drawn of a variant's tally; None: nothing to draw
_CURVES: dict[str, Callable[[Total], float | None]] = {
    "success rate, 95 % interval": lambda total: total["success_rate"],
    "boundary jump p99 (mrad)": lambda total: _figure(total, "boundary_jump_rad", "p99", 1e3),
    "prediction age p50 (ms)": lambda total: _figure(total, "prediction_age_ms", "p50", 1.0),
    "mean duration of the successes (s)": lambda total: total["success_duration_s"] and total["success_duration_s"]["mean"],
}


def write_delay_plot(episodes: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes one line an executor over the ms that were added to every inference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, dict[float, Total]] = {}
    for (executor, delay_ms), group in sorted(tally.variants(episodes).items(), key=lambda item: item[0][1]):
        lines.setdefault(executor or "as the rig says", {})[delay_ms] = tally.tally(group)
    figure, axes = pyplot.subplots(1, len(_CURVES), figsize=(17, 4.2), layout="constrained")
    for axis, (title, value) in zip(axes, _CURVES.items(), strict=True):
        for executor, totals in lines.items():
            known = {delay_ms: found for delay_ms, total in totals.items() if (found := value(total)) is not None}
            axis.plot(list(known), list(known.values()), "o-", label=executor)
        _dress(axis, title)
    for totals in lines.values():
        lows, highs = zip(*(total["success_interval_95"] for total in totals.values()), strict=True)
        axes[0].fill_between(list(totals), lows, highs, alpha=0.12)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _dress(axis: Axes, title: str) -> None:
    axis.set_xlabel("added to every inference (ms)")
    axis.set_title(title, fontsize=10)
    axis.set_ylim(bottom=0.0)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(total: Total, name: str, percentile: str, factor: float) -> float | None:
    figures = total["figures"][name]
    return factor * figures[percentile] if figures and percentile in figures else None
