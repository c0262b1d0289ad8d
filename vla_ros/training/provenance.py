"""How weights were made, for their config.json."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch


def provenance() -> dict[str, object]:
    """Command, revision of this source tree, date and torch."""
    return {
        "command": shlex.join(["vla", *sys.argv[1:]]),
        "revision": git_revision(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }


def git_revision() -> str:
    """Returns the commit of this source tree, with "+changes" when it is not clean, or "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changes else "")
