"""`vla rollout`: one instruction to a rig that is up."""

from __future__ import annotations

import os
import random
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_ros.cli.record import Outcome, RolloutRecord, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from vla_ros.cli.rollout_client import RolloutClient


def rollout(
    instruction: Annotated[str, typer.Argument(help="What the robot is to do, in words.")],
    rig: Annotated[str | None, typer.Option(help="The rig that is up: name or path; without it, asked for.")] = None,
    policy: Annotated[
        str | None, typer.Option(help='Policy instead of the one that is loaded: name, folder, "script" or module:Class.')
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulated scene; without it, drawn.")] = None,
    task: Annotated[str | None, typer.Option(help="The task that is judged, when the instruction words it differently.")] = None,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Time limit of the rollout in s.")] = 30.0,
    executor: Annotated[str | None, typer.Option(help='Executor instead of the rig\'s, e.g. "ensemble:weighting=adaptive".')] = None,
    json: Annotated[Path | None, typer.Option(help="Write the outcome and the figures to this file too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report (default: rollouts/<date-time>).")] = None,
) -> None:
    """Sends one instruction to a rig that is up (vla up RIG) and reports how it went; Ctrl-C cancels.

    Exit status: 0 success, 1 not done, 2 aborted or error.

    Examples:

      vla rollout "pick up the red block and put it on the plate"

      vla rollout "pick up the red block and put it in the bowl" --seed 7 --time-limit 20 --executor ensemble

      vla rollout "lift the tray with both hands" --policy script

      vla rollout "the same again" --policy rollouts/20261130-120000 --task "lift the tray with both hands"
    """
    from rich.console import Console

    from vla_ros.cli.rig_control import RigControl
    from vla_ros.cli.rollout_client import RolloutClient
    from vla_ros.core.rig import load_rig

    check_executor(executor)
    with RigControl() as control:
        resolved = load_rig(rig or control.rig())
        if policy:
            control.use_policy(policy)
    console = Console()
    folder = out or default_folder()
    with RolloutClient(resolved, record_frames=True) as client:
        client.recover_robots()
        scene = None
        if resolved.simulation:
            scene = random.randrange(100_000) if seed is None else seed
            task = client.reset_scene(scene, task or instruction)
        outcome = run_rollout(client, console, instruction, time_limit, executor or "", task or instruction, scene)
    files = write_report(client.record, outcome, folder, json)
    finish(console, outcome, files)


def run_rollout(
    client: RolloutClient, console: Console, instruction: str, time_limit_s: float, executor: str, task: str, seed: int | None
) -> Outcome:
    """Executes one task with live progress."""
    from vla_ros.cli.progress import RolloutProgress

    with RolloutProgress(console, instruction, lambda: client.feedback, lambda: client.recorder.steps) as progress:
        return client.execute(instruction, time_limit_s, executor, task=task, seed=seed, on_turn=progress.turn)


def check_executor(text: str | None) -> None:
    """Raises ConfigError for an executor that does not exist, before anything is started for it."""
    from vla_ros.core.executors import parse_executor

    if text:
        parse_executor(text)


def default_folder(parent: str = "rollouts") -> Path:
    """Returns a folder in the current one, named by the time."""
    return Path(parent) / datetime.now().strftime("%Y%m%d-%H%M%S")


def write_report(record: RolloutRecord, outcome: Outcome, folder: Path, copy: Path | None = None) -> list[Path]:
    """Writes rollout.json, .png, .mp4, actions.json into `folder` (what there is data for), the first to `copy` too; returns the paths."""
    from vla_ros.cli.report import write_plots
    from vla_ros.cli.video import write_video
    from vla_ros.policies.replay import ACTIONS, write_actions

    folder.mkdir(parents=True, exist_ok=True)
    files = [path for path in (folder / "rollout.json", copy) if path is not None]
    for path in files:
        write_json(path, outcome.as_json())
    if record.executed:
        write_actions(folder / ACTIONS, record.embodiment, record.executed, record.start_ns)
        files.append(folder / ACTIONS)
    if record.chunks:
        write_plots(record, outcome, folder / "rollout.png")
        files.append(folder / "rollout.png")
    if any(record.frames.values()):
        write_video(record, outcome, folder / "rollout.mp4")
        files.append(folder / "rollout.mp4")
    return files


def finish(console: Console, outcome: Outcome, files: list[Path]) -> None:
    """Prints the summary and ends the command with the outcome's exit status."""
    from vla_ros.cli.progress import print_summary

    print_summary(console, outcome, files)
    raise typer.Exit(outcome.exit_code)


def has_display() -> bool:
    """Whether a window could open."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
