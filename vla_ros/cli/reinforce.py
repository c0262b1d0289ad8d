"""`vla reinforce CONFIG`: a policy that can do its tasks half gets better by trying them."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vla_ros.training.reinforce import Comparison


def reinforce(
    config: Annotated[
        Path,
        typer.Argument(help="Configuration, such as config/training/qwen_vla_ppo.yaml; a name is looked up in config/training."),
    ],
    checkpoint: Annotated[str | None, typer.Option(help="What to start from, instead of the configuration's: a folder or a name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoints, log and curves. Default: runs/<config>.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of rollout and update, instead of the configuration's.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out after a stop or a kill.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file (default: result.json in --out).")] = None,
) -> None:
    """Improve a flow policy by PPO in the fast simulation: it is paid for success, nothing else.

    Examples:

        vla reinforce qwen_vla_ppo --checkpoint runs/qwen_vla/latest

        vla reinforce qwen_vla_ppo --resume
    """
    import torch

    from vla_ros.training.reinforce import reinforce as run
    from vla_ros.training.reinforce_config import load_reinforcement

    torch.set_num_threads(1)  # more only wait for each other on a busy machine
    settings = load_reinforcement(str(config), checkpoint, iterations)
    folder = out or Path("runs") / config.stem
    results = run(settings, folder, resume)
    rows = [_row(result) for result in results]
    typer.echo(_table(rows))
    path = json or folder / "result.json"
    path.write_text(json_module.dumps({"checkpoint": str(folder / "best"), "tasks": rows}, indent=1) + "\n")
    typer.echo(f"{folder / 'best'}; figures in {path}")


def _row(result: Comparison) -> dict[str, object]:
    """What the table and the JSON show of one task."""
    from vla_ros.cli.tally import wilson

    row: dict[str, object] = {"task": result.task.name, "learnt": result.task.share > 0, "episodes": result.before.episodes}
    for name, measured in (("before", result.before), ("after", result.after)):
        low, high = wilson(round(measured.success_rate * measured.episodes), measured.episodes)
        row[name] = {
            "success_rate": round(measured.success_rate, 4),
            "success_interval_95": [round(low, 3), round(high, 3)],
            "wrong_object_rate": round(measured.wrong_object_rate, 4),
            "mean_steps": round(measured.mean_steps, 1),
        }
    return row


def _table(rows: list[dict[str, object]]) -> str:
    from vla_ros.cli.tally import markdown

    shown = []
    for row in rows:
        before, after = row["before"], row["after"]
        cells = {
            name: f"{value['success_rate']:.0%} ({value['success_interval_95'][0]:.0%} to {value['success_interval_95'][1]:.0%})"
            for name, value in (("before", before), ("after", after))
        }
        shown.append(
            {
                "task": row["task"],
                "learnt": "yes" if row["learnt"] else "no",
                "episodes": row["episodes"],
                **cells,
                "points": f"{100 * (after['success_rate'] - before['success_rate']):+.0f}",
            }
        )
    return markdown(shown)
