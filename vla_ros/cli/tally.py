"""Adds up the episodes of an evaluation. Numbers only: no ROS, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

Episode = Mapping[str, object]
_Z95 = 1.959964


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson interval of a rate; (0, 1) without trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, _Z95**2
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def tally(episodes: Sequence[Episode]) -> dict[str, object]:
    """Returns rates with their intervals, the durations of the successes and the loop's figures over the episodes.

    Figures of the loop are the medians over the episodes of each episode's percentile.
    """
    successes, wrong = _count(episodes, "success"), _count(episodes, "wrong_object")
    durations = [e["duration_s"] for e in episodes if e["success"]]
    return {
        "success_rate": _rate(successes, len(episodes)),
        "success_interval_95": _rounded(wilson(successes, len(episodes))),
        "steps_done_share": _steps_done(episodes),
        "wrong_object_rate": _rate(wrong, len(episodes)),
        "wrong_object_interval_95": _rounded(wilson(wrong, len(episodes))),
        "success_duration_s": {"mean": round(fmean(durations), 2), "median": round(median(durations), 2)} if durations else None,
        "figures": {name: _over_episodes(episodes, name) for name in FIGURES},
    }


# name in an episode's figures -> what the tables call it
FIGURES = {
    "inference_ms": "inference (ms)",
    "observation_age_ms": "observation age (ms)",
    "tick_late_ms": "tick late (ms)",
    "boundary_jump_rad": "boundary jump (rad)",
    "boundary_jump_m": "boundary jump (m)",
    "prediction_age_ms": "prediction age (ms)",
}


def by(episodes: Iterable[Episode], key: str) -> dict[str, dict[str, object]]:
    """Returns the rates of the episodes grouped by the value of `key`, in order of appearance."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(str(episode[key]), []).append(episode)
    return {name: {"episodes": len(group), **_rates(group)} for name, group in groups.items()}


def variants(episodes: Iterable[Episode]) -> dict[tuple[str, float], list[Episode]]:
    """Returns the episodes grouped by (executor, added ms of inference), in order of appearance."""
    groups: dict[tuple[str, float], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault((str(episode["asked_executor"]), float(episode["inference_delay_ms"])), []).append(episode)
    return groups


def mean_rate(groups: Mapping[str, Mapping[str, object]]) -> float | None:
    """Returns the mean of the groups' success rates; None without groups."""
    return round(fmean(group["success_rate"] for group in groups.values()), 4) if groups else None


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns a Markdown table of rows with the same keys; None and missing values show as a dash."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row.get(head)) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sweep_row(executor: str, episodes: Sequence[Episode], delay_ms: float | None = None) -> dict[str, object]:
    """Returns one line of the executors' table; with a column for the added ms of inference unless it is None."""
    total = tally(episodes)
    figures, duration = total["figures"], total["success_duration_s"]
    low, high = total["success_interval_95"]
    return {
        "executor": f"`{executor}`",
        **({} if delay_ms is None else {"delay (ms)": f"{delay_ms:g}"}),
        "success": f"{total['success_rate']:.0%} ({low:.0%} to {high:.0%})",
        "wrong object": f"{total['wrong_object_rate']:.0%}",
        "time (s)": duration and duration["mean"],
        "jump p50 (mrad)": _thousandfold(figures["boundary_jump_rad"], "p50"),
        "jump p99 (mrad)": _thousandfold(figures["boundary_jump_rad"], "p99"),
        "jump p99 (mm)": _thousandfold(figures["boundary_jump_m"], "p99"),
        "prediction age p50 (ms)": figures["prediction_age_ms"] and round(figures["prediction_age_ms"].get("p50", 0.0)),
    }


def _thousandfold(figures: Mapping[str, float] | None, name: str) -> float | None:
    return round(1e3 * figures[name], 2) if figures and name in figures else None


def _rates(episodes: Sequence[Episode]) -> dict[str, object]:
    total = tally(episodes)
    return {name: total[name] for name in ("success_rate", "success_interval_95", "steps_done_share", "wrong_object_rate")}


def _steps_done(episodes: Sequence[Episode]) -> float | None:
    """The mean share of its steps that an episode had done in the end; None where no task has several."""
    several = [episode["steps_done"] / episode["steps"] for episode in episodes if episode.get("steps", 1) > 1]
    return round(fmean(several), 4) if several else None


def _count(episodes: Sequence[Episode], name: str) -> int:
    return sum(bool(episode[name]) for episode in episodes)


def _rate(count: int, total: int) -> float:
    return round(count / total, 4) if total else 0.0


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in interval]


def _over_episodes(episodes: Sequence[Episode], name: str) -> dict[str, float] | None:
    """Median over the episodes of each percentile, the largest of each maximum; None where no episode has the figure."""
    samples = [_known(episode[name]) for episode in episodes if isinstance(episode.get(name), Mapping)]
    keys = {key for sample in samples for key in sample}
    columns = {key: [sample[key] for sample in samples if key in sample] for key in sorted(keys)}
    return {key: max(values) if key == "max" else median(values) for key, values in columns.items()} or None


def _known(sample: Mapping[str, float | None]) -> dict[str, float]:
    """Without percentiles of nothing, such as the jumps of an episode that ended before its second chunk."""
    return {name: value for name, value in sample.items() if value is not None and math.isfinite(value)}


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
