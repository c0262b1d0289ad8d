"""Shows a rollout while it runs, and its figures at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vla_ros.cli.record import Outcome

_PLAIN_PERIOD_S = 2.0
_REDRAW_S = 0.25


class RolloutProgress:
    """One line that follows the feedback of ExecuteTask; where no terminal is there, one line every 2 s.

    Args:
        console: where to.
        instruction: what the policy was told.
        feedback: returns the newest feedback (fields of ExecuteTask's feedback).
        steps: returns how many steps of the task are done, of how many.
    """

    def __init__(
        self, console: Console, instruction: str, feedback: Callable[[], object], steps: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> None:
        self._console, self._instruction, self._feedback, self._steps = console, instruction, feedback, steps
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._due_s = 0.0

    def __enter__(self) -> RolloutProgress:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def turn(self) -> None:
        """Call often; redraws when it is time."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + (_REDRAW_S if self._live else _PLAIN_PERIOD_S)
        if self._live:
            self._live.update(self._line(), refresh=True)
        elif self._feedback().chunks:
            self._console.print(self._line())

    def _line(self) -> Text:
        feedback = self._feedback()
        line = Text.assemble(
            (f"{feedback.elapsed_s:5.1f} s  ", "bold"), (f'"{self._instruction}"  ', "cyan"), f"chunk {feedback.chunks:<4d} ",
            f"inference {feedback.inference_ms:3.0f} ms  ", f"observation age {feedback.observation_age_ms:3.0f} ms",
        )  # fmt: skip
        done, steps = self._steps()
        if steps > 1:
            line.append(f"  step {min(done + 1, steps)} of {steps}", "bold")
        if feedback.skill:
            line.append(f"  skill {feedback.step + 1}: {feedback.skill}")
        if feedback.hold_reason:
            line.append(f"  holds: {feedback.hold_reason}", "yellow")
        return line


def print_summary(console: Console, outcome: Outcome, files: list[Path]) -> None:
    """Prints the figures of one rollout as a table, and where its files are."""
    figures = outcome.statistics
    word = Text(outcome.outcome.replace("_", " "), "bold green" if outcome.success else "bold red")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("outcome", word + Text(f"  {outcome.reason}" if outcome.reason else "", "default"))
    table.add_row("instruction", outcome.instruction)
    if outcome.steps > 1:
        table.add_row("steps", f"{outcome.steps_done} of {outcome.steps} done")
    table.add_row("duration", f"{outcome.duration_s:.1f} s, {figures['chunks']} chunks")
    for name, label, unit in (
        ("inference_ms", "inference", "ms"), ("observation_age_ms", "observation age", "ms"), ("tick_late_ms", "control tick late", "ms"),
        ("boundary_jump_rad", "boundary jump", "rad"),
    ):  # fmt: skip
        table.add_row(label, _percentiles(figures[name], unit))
    for camera, counts in figures["frames"].items():
        table.add_row(f"camera {camera}", f"{counts['received']} of {counts['published']} frames, {counts['lost']} lost")
    table.add_row("holds", ", ".join(f"{hold['reason']} ({hold['duration_s']:.2f} s)" for hold in figures["holds"]) or "none")
    table.add_row("rejected", ", ".join(f"{count} x {name}" for name, count in figures["rejected"].items()) or "none")
    console.print(table)
    for path in files:
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _percentiles(figures: Mapping[str, float], unit: str) -> str:
    known = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    return ",  ".join(f"{name} {value:.3g} {unit}" for name, value in known.items()) or "-"
