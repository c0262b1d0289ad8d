"""`vla demo`: starts a simulated rig, lets it do one task, reports."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_ros.cli.rollout import check_executor, default_folder, finish, has_display, run_rollout, write_report

if TYPE_CHECKING:
    from rich.console import Console

    from vla_ros.cli.record import Outcome, RolloutRecord

DEFAULT_INSTRUCTION = "pick up the red block and put it on the plate"


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the scene.")] = 0,
    instruction: Annotated[str, typer.Option(help="What the robot is to do, in words.")] = DEFAULT_INSTRUCTION,
    task: Annotated[str | None, typer.Option(help="The task that is judged, when the instruction words it differently.")] = None,
    rig: Annotated[str, typer.Option(help="A simulated rig: name or path.")] = "franka_sim",
    policy: Annotated[str | None, typer.Option(help='Checkpoint instead of the rig\'s; "script" is the scripted expert.')] = None,
    executor: Annotated[str | None, typer.Option(help='Executor instead of the rig\'s, e.g. "ensemble:weighting=adaptive".')] = None,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Time limit of the rollout in s.")] = 30.0,
    headless: Annotated[bool, typer.Option("--headless", help="Do not open the video afterwards.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the outcome and the figures to this file too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report (default: rollouts/<date-time>).")] = None,
) -> None:
    """Starts the simulated rig, gives it one instruction, and writes rollout.mp4, rollout.png and rollout.json.

    Exit status: 0 success, 1 not done, 2 aborted or error.

    Examples:

      vla demo

      vla demo --seed 3 --instruction "pick up the green block and put it in the bowl" --headless

      vla demo --policy script --executor first --out demo
    """
    from rich.console import Console

    check_executor(executor)
    console = Console()
    folder = (out or default_folder()).absolute()
    record, outcome = _run(console, rig, policy, executor, folder, instruction, task or instruction, seed, time_limit)
    files = write_report(record, outcome, folder, json)
    if not headless:
        _open(folder / "rollout.mp4")
    finish(console, outcome, files)


def _run(
    console: Console, rig: str, policy: str | None, executor: str | None, folder: Path,
    instruction: str, task: str, seed: int, time_limit_s: float,
) -> tuple[RolloutRecord, Outcome]:  # fmt: skip
    from dataclasses import replace

    from vla_ros.cli.running_rig import own_rig

    began_ns = time.time_ns()
    with own_rig(rig, folder, policy, executor, record=True) as (client, name):
        up_s = (time.time_ns() - began_ns) * 1e-9
        console.print(f"rig {name} is up ({up_s:.1f} s)", highlight=False)
        client.reset_scene(seed, task)
        outcome = run_rollout(client, console, instruction, time_limit_s, "", task, seed)
        executed = client.record.executed
        moved_s = round((executed[0].stamp_ns - began_ns) * 1e-9, 2) if executed else None
        extra = {"rig": name, "policy": policy or "", "up_s": round(up_s, 2), "moved_after_s": moved_s}
        return client.record, replace(outcome, extra=extra)


def _open(video: Path) -> None:
    """Shows the video where a desktop is there; elsewhere the summary says where it lies."""
    opener = shutil.which("xdg-open")
    if opener and has_display() and video.exists():
        subprocess.Popen([opener, str(video)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
