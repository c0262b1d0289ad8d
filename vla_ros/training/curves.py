"""The log of a training: one CSV row per interval, and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = ("step", "loss", "chunk", "gripper", "task_objects", "all_objects", "block_m", "steps_per_s", "success", "wrong_object")


class Log:
    """Appends to `log.csv` of a folder; rows after `step` (from before a resume) are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.csv"
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        with self.path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            return list(csv.DictReader(stream))

    def add(self, **values: float) -> None:
        row = {name: f"{value:.6g}" for name, value in values.items()}
        self.rows.append({name: row.get(name, "") for name in COLUMNS})
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(self.rows[-1])

    def draw(self) -> Path:
        """Writes `curves.png`: the losses, the block position error and the closed-loop success over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
        for name in ("loss", "chunk", "gripper", "task_objects", "all_objects"):
            axes[0].plot(*self._column(name), label=name)
        axes[0].legend()
        axes[0].set(yscale="log", title="losses", xlabel="step")
        steps, metres = self._column("block_m")
        axes[1].plot(steps, [100 * value for value in metres])
        axes[1].set(yscale="log", title="target block position error (cm)", xlabel="step")
        for name in ("success", "wrong_object"):
            axes[2].plot(*self._column(name), marker="o", label=name)
        axes[2].legend()
        axes[2].set(ylim=(-0.02, 1.02), title="closed loop, fast simulation", xlabel="step")
        path = self.path.with_name("curves.png")
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        return path

    def _column(self, name: str) -> tuple[list[int], list[float]]:
        rows = [row for row in self.rows if row.get(name)]
        return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]
