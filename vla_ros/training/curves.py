"""The log of a training: one CSV row per interval, and a picture of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

NOT_DRAWN = ("step", "steps_per_s")


class Panel(NamedTuple):
    """One of the curves' pictures; `columns` None: whatever no other panel shows. `scale` is matplotlib's, "share" is 0 to 1."""

    title: str
    columns: tuple[str, ...] | None
    scale: str


TRAINING = (
    Panel("losses", None, "log"),
    Panel("error of the object to move (spreads of the data)", ("object_error",), "log"),
    Panel("closed loop, fast simulation", ("success", "wrong_object"), "share"),
)


class Log:
    """Keeps `log.csv` of a folder, a column for each figure it is told; rows after `step` (from before a resume) are dropped."""

    def __init__(self, folder: Path, step: int, panels: tuple[Panel, ...] = TRAINING) -> None:
        self.panels = panels
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
        """Writes `curves.png`: the panels, side by side, over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        shown = {*NOT_DRAWN, *(name for panel in self.panels for name in panel.columns or ())}
        rest = tuple(name for name in self.columns if name not in shown)
        count = len(self.panels)
        figure, axes = pyplot.subplots(1, count, figsize=(4.3 * count, 3.6), layout="constrained", squeeze=False)
        for axis, panel in zip(axes[0], self.panels, strict=True):
            share = panel.scale == "share"
            for name in rest if panel.columns is None else panel.columns:
                axis.plot(*self._column(name), label=name, marker="o" if share else None)
            axis.legend()
            axis.set(title=panel.title, xlabel="step", yscale="linear" if share else panel.scale)
            if share:
                axis.set(ylim=(-0.02, 1.02))
        path = self.path.with_name("curves.png")
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        return path

    def _column(self, name: str) -> tuple[list[int], list[float]]:
        rows = [row for row in self.rows if row.get(name)]
        return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]
