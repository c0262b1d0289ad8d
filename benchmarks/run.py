"""Measures what the suite promises, against a peer or a floor in the same run.

python benchmarks/run.py [NAME ...] [--json FILE]      (NAME: a key of `BENCHMARKS`; none named: all)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import atomic_vla, cameras, ensemble, flow_cache, rig_load, robots, round_trip, serve, skill_memory  # noqa: E402  the root is not on the path of a script in a folder

SCRATCH = ROOT / ".build" / "benchmarks"


@dataclass(frozen=True)
class Promise:
    """`figure` of one benchmark must not exceed `limit`; `aim` is where it should be."""

    figure: str
    limit: float
    aim: float


BENCHMARKS: dict[str, tuple[Callable[[], dict[str, float]], list[Promise]]] = {
    "ensemble": (ensemble.measure, [Promise("ours_p50_us", 100, 50)]),
    "round_trip": (lambda: round_trip.measure(SCRATCH), [Promise("ratio_p50", 1.0, 0.5)]),
    "flow_cache": (flow_cache.measure, [Promise("ratio", flow_cache.LIMIT, flow_cache.LIMIT)]),
    "atomic_act": (
        atomic_vla.measure_act,
        [Promise("k12_over_k1", atomic_vla.ACT_LIMIT, 1.0), Promise("selected_over_dense", atomic_vla.DENSE_LIMIT, 0.2)],
    ),
    "atomic_think": (atomic_vla.measure_think, [Promise("ratio", atomic_vla.THINK_LIMIT, 0.7)]),
    "skill_memory": (skill_memory.measure, [Promise("retrieval_ms", skill_memory.LIMIT_MS, skill_memory.LIMIT_MS)]),
    "serve": (lambda: serve.measure(SCRATCH), [Promise("ratio_p50", 1.0, 0.9)]),
    "cameras": (lambda: cameras.measure(SCRATCH / "cameras"), [Promise("frames_lost", 0, 0), Promise("end_told_s", 0.5, 0.3)]),
    "robots": (
        lambda: robots.measure(SCRATCH / "robots"),
        [
            Promise(f"{robot}_{figure}", robots.CORE_SHARE_MAX, robots.CORE_SHARE_MAX)
            for robot in robots.ROBOTS
            for figure in robots.LIMITED
        ],
    ),
    "rig_load": (lambda: rig_load.measure(SCRATCH / "rig_load"), [Promise("frames_lost", 0, 0), Promise("tick_late_p99_ms", 5, 2)]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, help="writes the figures here")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(BENCHMARKS)}")
    os.chdir(ROOT)  # child processes import `benchmarks` from here
    figures, missed = {}, False
    table = Table("benchmark", "figure", "measured", "limit", "aim", title=f"{platform.machine()}, {os.cpu_count()} cores")
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        measure, promises = BENCHMARKS[name]
        figures[name] = measure()
        limits = {promise.figure: promise for promise in promises}
        for figure, value in figures[name].items():
            promise = limits.get(figure)
            missed |= promise is not None and value > promise.limit
            style = "" if promise is None else "red" if value > promise.limit else "yellow" if value > promise.aim else "green"
            columns = (f"{promise.limit:g}", f"{promise.aim:g}") if promise else ("", "")
            table.add_row(name, figure, f"{value:.4g}", *columns, style=style)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
