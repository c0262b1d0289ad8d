"""`vla up`: runs the nodes of a rig."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from vla_ros.core.errors import VlaError

# The log's prefix says which node and when; the node's own line need not.
_LOGGING = {"RCUTILS_CONSOLE_OUTPUT_FORMAT": "{severity} {message}", "PYTHONUNBUFFERED": "1"}


def up(
    rig: Annotated[str, typer.Argument(help="Name in config/rigs, or path of a rig file.")],
    policy: Annotated[str | None, typer.Option(help='Checkpoint instead of the rig\'s: name, folder, "script" or module:Class.')] = None,
    executor: Annotated[str | None, typer.Option(help='Executor instead of the rig\'s, e.g. "ensemble:weighting=adaptive".')] = None,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="Run the rig without its policy node.")] = False,
    background: Annotated[bool, typer.Option("--background", hidden=True, help="Started by vla: ends with it, does not wait.")] = False,
) -> None:
    """Runs the nodes of a rig until Ctrl-C; ends with an error when one of them dies.

    Examples:

      vla up franka_sim

      vla up franka_sim --policy script --executor ensemble

      vla up franka_sim --no-policy
    """
    from vla_ros.cli.environment import environment
    from vla_ros.cli.processes import die_with_parent, full_name, run_nodes
    from vla_ros.cli.rollout import check_executor
    from vla_ros.core.rig import load_rig, node_specs

    began_s = time.monotonic()
    if background:
        die_with_parent()
    resolved = load_rig(rig)
    check_executor(executor)
    specs = node_specs(resolved, policy=policy, executor=executor, with_policy=not no_policy)
    names = [full_name(spec) for spec in specs]
    announce = None if background else lambda: _announce(resolved, names, began_s)
    run_nodes(specs, {**environment(os.environ), **_LOGGING}, on_started=announce)


def _announce(rig: object, names: Sequence[str], began_s: float) -> None:
    """Says when all nodes are active; runs beside the nodes' log."""
    from vla_ros.cli.rollout_client import RolloutClient

    try:
        with RolloutClient(rig) as client:
            client.wait_until_active(names)
    except VlaError as error:
        print(f"vla: {error}", file=sys.stderr, flush=True)
        return
    print(f"rig {rig.name} is up ({time.monotonic() - began_s:.1f} s)", flush=True)
