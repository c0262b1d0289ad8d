"""`vla doctor`: what this machine has, what is missing, how to mend it."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="print the checks as JSON")] = False,
) -> None:
    """Checks ROS, the DDS profile, graphics, devices and versions, and says how to mend what is wrong.

    Exit status: 0 all that is needed is there, 1 not.

    Examples:

      vla doctor

      vla doctor --json
    """
    checks = [check() for check in _checks()]
    failed = [check for check in checks if check.state == "failed"]
    if json:
        fields = [{"name": c.name, "state": c.state, "value": c.value, "fix": c.fix} for c in checks]
        typer.echo(json_module.dumps({"ok": not failed, "checks": fields}, indent=2))
    else:
        _print(checks)
    raise typer.Exit(1 if failed else 0)


def _checks() -> list:
    """All checks, in the order in which they build on each other."""
    from vla_ros.cli import checks as software
    from vla_ros.cli import device_checks as devices

    return [
        *(software.ros, software.messages, software.dds_profile, software.shared_memory, software.discovery),
        *(software.graphics, software.packages, software.franka, devices.gpu),
        *(devices.realtime, devices.realsense, devices.can, devices.serial, software.disk, software.cores),
    ]


def _print(checks: list) -> None:
    from rich.console import Console
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "absent": "[dim]absent[/]", "advice": "[yellow]advice[/]", "failed": "[red]failed[/]"}
    table = Table(box=None, pad_edge=False)
    for header in ("", "check", "found", "what to do"):
        table.add_column(header, overflow="fold")
    for check in checks:
        table.add_row(marks[check.state], check.name, check.value, check.fix)
    Console().print(table)
