"""The log of a training: one CSV row per interval, and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path

NO_LOSS = ("step", "object_error", "steps_per_s", "success", "wrong_object")


class Log:
    """Keeps `log.csv` of a folder, a column for each figure it is told; rows after `step` (from before a resume) are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.csv"
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        self.columns = list(self.rows[0]) if self.rows else ["step"]
        self._write()

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            return list(csv.DictReader(stream))

    def add(self, **values: float) -> None:
        self.rows.append({name: f"{value:.6g}" for name, value in values.items()})
        new = [name for name in values if name not in self.columns]
        if new:
            self.columns += new
            self._write()
        else:
            with self.path.open("a", newline="") as stream:
                csv.DictWriter(stream, self.columns, restval="").writerow(self.rows[-1])

    def _write(self) -> None:
        partial = self.path.with_name(".log.csv.new")
        with partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)

    def draw(self) -> Path:
        """Writes `curves.png`: the losses, the error of the object to move and the closed-loop success over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
        for name in [name for name in self.columns if name not in NO_LOSS]:
            axes[0].plot(*self._column(name), label=name)
        axes[0].legend()
        axes[0].set(yscale="log", title="losses", xlabel="step")
        axes[1].plot(*self._column("object_error"))
        axes[1].set(yscale="log", title="error of the object to move (spreads of the data)", xlabel="step")
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
