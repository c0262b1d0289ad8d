"""The log of a training: one CSV row per interval, and a picture of it."""

from __future__ import annotations

import csv
import resource
import time
from pathlib import Path
from typing import NamedTuple

import torch

NOT_DRAWN = ("step", "steps_per_s", "elapsed_s", "memory_mib", "learning_rate")


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
    """Keeps `log.csv` of a folder, a column for each figure it is told, and the same in TensorBoard's event files beside it.

    Rows after `step` (from before a resume) are dropped. Time (`elapsed_s`, over all resumes) and memory (`memory_mib`, the most so far)
    are added to what is told. Not `written`: it keeps nothing, as the log of any but the first of several processes.
    """

    def __init__(self, folder: Path, step: int, panels: tuple[Panel, ...] = TRAINING, written: bool = True) -> None:
        self.panels, self._written = panels, written
        if not written:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.csv"
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        self.columns = list(self.rows[0]) if self.rows else ["step"]
        self._write()
        self._events = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if self.rows else None)
        self._since_s = time.monotonic() - max((float(row.get("elapsed_s") or 0) for row in self.rows), default=0.0)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as stream:
            return list(csv.DictReader(stream))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:
            self._events.close()

    def add(self, step: int, **values: float) -> None:
        if not self._written:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        values = {"step": step, **values, "elapsed_s": time.monotonic() - self._since_s, "memory_mib": peak_memory_mib()}
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
            if axis.lines:
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


def peak_memory_mib() -> float:
    """The most that this process has had: on the GPU where there is one, else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
