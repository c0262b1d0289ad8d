"""`vla eval`: many episodes on one simulated rig, counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_ros.cli.rollout import check_executor, default_folder

if TYPE_CHECKING:
    from vla_ros.cli.episodes import EpisodePlan
    from vla_ros.cli.evaluation import Evaluation


def eval(
    rig: Annotated[str, typer.Option(help="A simulated rig: name or path.")] = "franka_sim",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes (of each executor).")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first episode; the others count up.")] = 1000,
    policy: Annotated[str | None, typer.Option(help='Checkpoint instead of the rig\'s; "script" is the scripted expert.')] = None,
    executor: Annotated[str | None, typer.Option(help='Executor instead of the rig\'s, e.g. "ensemble:weighting=adaptive".')] = None,
    executors: Annotated[str | None, typer.Option(help="Compare several, separated by commas, on the same seeds.")] = None,
    delays: Annotated[str | None, typer.Option(help="Compare inference that takes so many ms longer, separated by commas.")] = None,
    instruction_set: Annotated[str, typer.Option(help='"canonical", "train" or "held-out" (never trained on) wordings.')] = "canonical",
    kinds: Annotated[str, typer.Option(help='Kinds of tasks in turn, e.g. "place,drawer" (default: those of the rig\'s table).')] = "",
    move_target: Annotated[float, typer.Option(min=0.0, max=0.2, help="Move the target block by so many m before the grasp.")] = 0.0,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Time limit in s, for each step of the task.")] = 20.0,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file (default: eval.json in --out).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results, plot and log (default: evals/<date-time>).")] = None,
) -> None:
    """Counts successes over seeded episodes of the table's tasks (two arms: also passing a bar and lifting a tray).

    The kinds "drawer" (open it, put a block in, close it) and "clear" (every block into the bowl) take three steps: an episode has three
    times the time limit, and what is counted besides success is how many steps were done in the end.

    Results are written after each episode. With --executors and --delays every executor meets every delay on the same seeds: the table
    (executors.md) and the plot (delays.png) show which of them bears slow inference.

    The target is moved (--move-target) in a direction drawn from the seed when the TCP first comes below 0.22 m, 3 s after
    the start at the latest. Exit status: 0 when all episodes ran, however they ended; 2 when the rig died.

    Examples:

      vla eval --rig franka_sim --episodes 50 --seed 1000 --json eval.json

      vla eval --rig aloha_sim --policy script --episodes 20

      vla eval --episodes 100 --instruction-set held-out

      vla eval --policy script --kinds drawer,clear --episodes 6

      vla eval --episodes 20 --move-target 0.06 --executors "first,chunk:execute_steps=8,ensemble,ensemble:weighting=adaptive,rtc"

      vla eval --episodes 10 --executors "first,chunk:execute_steps=8,ensemble:weighting=age" --delays "0,100,200,400"
    """
    from rich.console import Console

    from vla_ros.cli.episodes import plan_episodes, split_delays, split_executors, split_kinds
    from vla_ros.cli.evaluation import Evaluation
    from vla_ros.core.rig import load_rig
    from vla_ros.sim.layout import layout_of

    folder = (out or default_folder("evals")).absolute()
    chosen = split_kinds(kinds, layout_of(load_rig(rig).embodiment.name))
    plan = plan_episodes(seed, episodes, instruction_set, chosen)
    names = split_executors(executors) if executors else [executor or ""]
    for name in names:
        check_executor(name)
    settings = {"rig": rig, "policy": policy or "", "executor": executor or "", "seed": seed, "instruction_set": instruction_set}
    settings |= {"kinds": list(chosen), "move_target_m": move_target, "time_limit_s": time_limit}
    evaluation = Evaluation(Console(), settings, names, json or folder / "eval.json", folder, split_delays(delays) if delays else [0.0])
    _run(evaluation, plan, rig, folder, policy)


def _run(evaluation: Evaluation, plan: list[EpisodePlan], rig: str, folder: Path, policy: str | None) -> None:
    """Runs all episodes on one rig; whatever ends it, what is counted by then is told."""
    from vla_ros.cli.running_rig import own_rig

    try:
        with own_rig(rig, folder, policy, None, record=False) as (client, name):
            evaluation.run(client, name, plan)
    finally:
        evaluation.finish()
