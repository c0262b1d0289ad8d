"""One line per step of `make setup`, its noise in a log, and what to do when it fails. Standard library only."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

LOG = Path(__file__).resolve().parents[1] / ".venv" / "setup.log"
_QUIET_S = 15.0  # how often a step that is not on a terminal says that it is alive
_ADVICE = {  # what a tool's output says -> what the reader can do
    "No space left on device": "the disk is full: free some space, then run make setup again",
    "Could not fetch URL": "no package index answers: check the network or PIP_INDEX_URL",
    "Failed to establish a new connection": "no package index answers: check the network or PIP_INDEX_URL",
    "No matching distribution found": "the package index lacks a pinned version (named in the log): check PIP_INDEX_URL",
    "Python.h: No such file": "Python's headers are missing: sudo apt install python3-dev",
    "Killed signal terminated program": "the compiler ran out of memory: close other programs, then run make setup again",
}


class StepFailed(Exception):
    """A command of a step failed; the message says which, why, and where its output is."""


def say(text: str) -> None:
    """Prints one line of set-up."""
    print(f"setup: {text}", flush=True)


def run(command: list[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a command, shows that it lives, keeps its output in the log.

    Args:
        command: with its arguments.
        what: for the reader, e.g. "building vla_msgs".
        environment: of the command; this process's own if None.

    Raises:
        StepFailed: it ended with another status than 0.
    """
    started_s = time.monotonic()
    shown_s = started_s
    lines: list[str] = []
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace")
        for line in process.stdout:
            lines.append(line)
            log.write(line)
            shown_s = _alive(what, line, started_s, shown_s)
        status = process.wait()
    _end_line()
    if status != 0:
        raise StepFailed(_reason(what, "".join(lines)))
    say(f"{what} ({time.monotonic() - started_s:.0f} s)")


def _alive(what: str, line: str, started_s: float, shown_s: float) -> float:
    now_s = time.monotonic()
    terminal = sys.stdout.isatty()
    if now_s - shown_s < (0.2 if terminal else _QUIET_S):
        return shown_s
    text = f"{what}, {now_s - started_s:.0f} s: {line.strip()[:70]}"
    print(f"\r\033[Ksetup: {text}" if terminal else f"setup: {text}", end="" if terminal else "\n", flush=True)
    return now_s


def _end_line() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def _reason(what: str, output: str) -> str:
    advice = next((text for pattern, text in _ADVICE.items() if pattern in output), "")
    tail = "\n".join(f"  {line}" for line in output.strip().splitlines()[-12:])
    return f"{what} failed{': ' + advice if advice else ''}. The whole output is in {LOG}; its end:\n{tail}"
