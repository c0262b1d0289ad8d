"""`vla skill ...`: what the systems know of skills."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

skill = typer.Typer(
    help="Look at what a policy knows of skills, and add to it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@skill.callback()
def group() -> None:
    """Its presence keeps a command that is alone from taking the place of the group."""


@skill.command()
def memory(
    checkpoint: Annotated[str, typer.Argument(help="A MoL-MSM VLA checkpoint: a folder, or the name of one in config/checkpoints.")],
    grow: Annotated[
        Path | None, typer.Option(help="A folder of demonstrations of its robot; the episodes that succeeded are added first.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prints what the meta-skill memory of a checkpoint holds; with --grow it learns episodes without training.

    Examples:

      vla skill memory runs/mol_msm_piper/best

      vla skill memory runs/mol_msm_piper/best --grow data/piper --json
    """
    from vla_ros.policies import find_checkpoint
    from vla_ros.policies.mol_msm.summary import summarise
    from vla_ros.training.growth import grow_memory

    folder = find_checkpoint(checkpoint)
    found = summarise(folder)
    if grow is not None:
        added = grow_memory(folder, str(found["embodiment"]), grow)
        found = {"added_episodes": added, **summarise(folder)}
    typer.echo(jsonlib.dumps(found, indent=1) if json else _table(found))


def _table(found: dict[str, object]) -> str:
    values = {**found, "channels": ", ".join(found["channels"])}
    return "\n".join(f"{name.replace('_', ' '):>18}  {value}" for name, value in values.items())
