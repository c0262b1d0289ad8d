"""The picture of an evaluation: success by task or wording, durations, what ended the failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla_ros.cli import tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GOOD, _BAD, _BLUE = "#2e8b57", "#d1495b", "#2f6fde"


def write_plot(episodes: Sequence[Mapping[str, object]], results: Mapping[str, object], path: Path) -> None:
    """Writes the picture of a finished or broken-off evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, times, ends) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained", width_ratios=(2.0, 1.2, 1.0))
    _plot_rates(rates, results)
    _plot_durations(times, episodes)
    _plot_ends(ends, episodes)
    low, high = results["success_interval_95"]
    figure.suptitle(
        f"{results['success_rate']:.1%} success (95 %: {low:.1%} to {high:.1%}), wrong object {results['wrong_object_rate']:.1%}, "
        f"{len(episodes)} episodes", fontsize=12,
    )  # fmt: skip
    for axis in (rates, times, ends):
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _variant(episode: Mapping[str, object]) -> str:
    name = str(episode["asked_executor"]) or "as the rig says"
    return f"{name}, {episode['inference_delay_ms']:g} ms more" if episode["inference_delay_ms"] else name


def _plot_rates(axis: Axes, results: Mapping[str, object]) -> None:
    """Success with its 95 % interval: by executor and delay where several ran, else by wording, else by task."""
    if "executors" in results:
        groups = tally.by([{**e, "variant": _variant(e)} for e in results["episodes"]], "variant")
    else:
        groups = results.get("phrasings") or results["tasks"]
    names = list(groups)
    values = [groups[name]["success_rate"] for name in names]
    bounds = [groups[name]["success_interval_95"] for name in names]
    lows, highs = zip(*bounds, strict=True)
    errors = [[v - low for v, low in zip(values, lows, strict=True)], [high - v for v, high in zip(values, highs, strict=True)]]
    axis.barh(range(len(names)), values, xerr=errors, color=_BLUE, alpha=0.85, ecolor="0.35", capsize=3)
    axis.set_yticks(range(len(names)), [f"{name or 'as the rig says'} ({groups[name]['episodes']})" for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0.0, 1.02)
    axis.set_xlabel("success rate, 95 % interval")


def _plot_durations(axis: Axes, episodes: Sequence[Mapping[str, object]]) -> None:
    done = [e["duration_s"] for e in episodes if e["success"]]
    failed = [e["duration_s"] for e in episodes if not e["success"]]
    axis.hist([done, failed], bins=15, stacked=True, color=[_GOOD, _BAD], label=["success", "other"])
    axis.set_xlabel("duration (s)")
    axis.set_ylabel("episodes")
    axis.legend(fontsize=8)


def _plot_ends(axis: Axes, episodes: Sequence[Mapping[str, object]]) -> None:
    counts = Counter(str(e["outcome"]).replace("_", " ") for e in episodes)
    wrong = sum(bool(e["wrong_object"]) for e in episodes)
    labels, values = [*counts, "wrong object"], [*counts.values(), wrong]
    axis.bar(labels, values, color=[_GOOD if label == "success" else _BAD for label in labels])
    axis.bar_label(axis.containers[0], fontsize=9)
    axis.tick_params(axis="x", labelrotation=30)
    axis.set_ylabel("episodes")
