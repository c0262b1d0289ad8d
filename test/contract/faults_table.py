"""docs/faults.md: its rows are what the fault tests have measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_HEAD = """| driver | what goes wrong | told as | state | told after (ms) | at rest after (ms) | goes on by |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Row:
    """One fault: `told_ms` is from the fault to the first report that names it, `rest_ms` from there to the arm's last motion.

    None where there is no such instant (a limit is approached slowly, a dead device tells no motion).
    """

    driver: str
    fault: str
    reason: str
    state: str
    told_ms: float | None
    rest_ms: float | None
    recovery: str

    def __str__(self) -> str:
        told, rest = ("-" if value is None else f"{value:.0f}" for value in (self.told_ms, self.rest_ms))
        return f"| {self.driver} | {self.fault} | `{self.reason}` | {self.state} | {told} | {rest} | {self.recovery} |"


def write_table(path: str | Path, rows: list[Row], drivers: list[str]) -> None:
    """Replaces or adds these rows in a page that has the two marks, ordered by `drivers`; a person deletes what is no case any more."""
    path = Path(path)
    lines = {tuple(_cells(line)[:2]): line for line in _lines(path)} | {(row.driver, row.fault): str(row) for row in rows}
    ordered = sorted(lines.values(), key=lambda line: drivers.index(_cells(line)[0]))
    table = "\n".join([_BEGIN, _HEAD, *ordered, _END])
    path.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: table, path.read_text(), flags=re.DOTALL))


def listed_cases(path: Path = PAGE) -> list[tuple[str, str]]:
    """Returns (driver, fault) of every row of a page."""
    return [tuple(_cells(line)[:2]) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    return path.read_text().partition(_BEGIN)[2].partition(_END)[0].strip().splitlines()[2:]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
