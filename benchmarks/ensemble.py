"""One query of the temporal ensemble (H = 50, 14 channels, 10 live chunks) against a bare numpy weighted mean of the same rows."""

from __future__ import annotations

import time

import numpy as np

from vla_ros.core.executors import make_executor
from vla_ros.core.types import ActionChunk

HORIZON, LIVE, QUERIES = 50, 10, 2000
DT_NS = 20_000_000
CHANNELS = tuple(f"{side}.{name}" for side in ("left", "right") for name in (*(f"joint{i}.position" for i in range(1, 7)), "gripper.width"))


def measure() -> dict[str, float]:
    """Returns microseconds: p50 and p99 of `.at`, of the floor, and the ratio of medians."""
    random = np.random.default_rng(0)
    executor = make_executor("ensemble")
    for i in range(LIVE):
        chunk = ActionChunk(i * DT_NS, DT_NS * 1e-9, CHANNELS, random.normal(size=(HORIZON, len(CHANNELS))), i)
        executor.add(chunk)
    first_ns = LIVE * DT_NS
    span_ns = (HORIZON - LIVE - 1) * DT_NS
    rows, weights = random.normal(size=(LIVE, len(CHANNELS))), np.exp(-0.01 * np.arange(LIVE))
    ours, floor = [], []
    for k in range(QUERIES):
        t_ns = first_ns + span_ns * k // QUERIES
        start_s = time.perf_counter()
        action = executor.at(t_ns)
        middle_s = time.perf_counter()
        weights @ rows / weights.sum()
        floor.append((time.perf_counter() - middle_s) * 1e6)
        ours.append((middle_s - start_s) * 1e6)
        if action is None or executor.figures.live != LIVE:
            raise RuntimeError(f"query {k}: {executor.figures} instead of {LIVE} live chunks")
    return {
        "ours_p50_us": float(np.percentile(ours, 50)),
        "ours_p99_us": float(np.percentile(ours, 99)),
        "floor_p50_us": float(np.percentile(floor, 50)),
        "ratio_p50": float(np.percentile(ours, 50) / np.percentile(floor, 50)),
    }
