"""The `vla` command. Each subcommand lives in its own module and is imported only when it is asked for."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperGroup

from vla_ros.cli import environment
from vla_ros.core.errors import VlaError

# command -> module of vla_ros.cli that holds a function of the same name, or a typer application with commands of its own
COMMANDS = ("doctor", "cameras", "up", "rollout", "demo", "train", "reinforce", "eval", "policy", "skill", "serve")


class LazyGroup(TyperGroup):
    """Finds commands in `COMMANDS`, so that `vla doctor` runs even where another command's imports are broken."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str):
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"vla_ros.cli.{cmd_name}"), cmd_name)
        if isinstance(found, typer.Typer):
            group = typer.main.get_command(found)
            group.name = cmd_name
            return group
        single = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
        single.command(cmd_name)(found)
        return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)


@app.callback(
    epilog="Start with [bold]vla doctor[/bold], then [bold]vla demo[/bold]. Each command shows examples with --help.",
)
def vla(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error too.")] = False
) -> None:
    """Vision-language-action policies on robots over ROS 2."""
    if debug:
        context.call_on_close(_print_traceback)


def _print_traceback() -> None:
    if isinstance(sys.exc_info()[1], VlaError):  # Python shows the others by itself; an exit status is no error
        traceback.print_exc()


def main() -> None:
    """Entry point of the `vla` console script; an error that vla_ros raises on purpose ends it with one message and status 2."""
    environment.prepare()
    try:
        app()
    except VlaError as error:
        print(f"vla: {error}", file=sys.stderr)
        sys.exit(2)
