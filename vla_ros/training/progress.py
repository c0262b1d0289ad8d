"""A progress bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows steps, figures, steps/s and the time left."""

    def __init__(self, total: int, done: int, label: str = "training", shown: bool = True) -> None:
        self._console = Console(quiet=not shown)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self._console, disable=self._console.quiet or not self._console.is_terminal)
        self._task = self._bar.add_task(label, total=total, completed=done, figures="")
        self._label, self._total, self._done, self._since_s = label, total, done, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, done: int, figures: dict[str, float]) -> float:
        """Shows `figures` at step `done`; returns the steps/s since the last call."""
        now_s = time.monotonic()
        rate = (done - self._done) / max(now_s - self._since_s, 1e-9)
        self._done, self._since_s = done, now_s
        text = " ".join(f"{name} {value:.3g}" for name, value in figures.items()) + f" {rate:.1f}/s"
        self._bar.update(self._task, completed=done, figures=text)
        if not (self._console.is_terminal or self._console.quiet):
            left_s = (self._total - done) / max(rate, 1e-9)
            print(f"{self._label} {done}/{self._total} {text} left {left_s / 60:.1f} min", flush=True)
        return rate

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)
