"""`vla train CONFIG`: demonstrations by the expert, then a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_ros.core.errors import ConfigError


def train(
    config: Annotated[
        Path,
        typer.Argument(
            help="Training configuration, such as config/training/robovlms_franka.yaml; a name is looked up in config/training."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of demonstrations, one in it for each embodiment; missing ones are collected.")] = Path(
        "data"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoints, log and curves. Default: runs/<config>.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps, instead of the configuration's.")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="Demonstrations of each embodiment, instead of the configuration's.")] = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint, by folder or name, whose weights and words to start from.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage of the training, for systems that have stages.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the training in --out after a stop or a kill.")] = False,
) -> None:
    """Train a policy on demonstrations of the scripted expert or on LeRobot v3.0 datasets, on a GPU or one CPU thread.

    Examples:

        vla train robovlms_franka

        vla train robovlms_franka --data /data/demonstrations --out runs/mine --steps 8000

        vla train robovlms_franka --resume

        vla train qwen_vla --init qwen_vla --steps 4000 --out runs/finer

    On several GPUs: accelerate launch --multi_gpu -m vla_ros.cli train robovlms_franka
    """
    import torch

    from vla_ros.training.config import load_training
    from vla_ros.training.train import train as run

    if resume and init:
        raise ConfigError(f"--resume goes on with its own weights: leave --init {init} out, or --resume and take another --out")
    torch.set_num_threads(1)  # more only wait for each other on a busy machine
    settings = load_training(str(config), steps, episodes, init, stage)
    name = config.stem
    folder = out or Path("runs") / name
    results = run(settings, data, folder, resume)
    if results is None:  # another process tells
        return
    if not results:
        typer.echo(f"{folder / 'best'}: no source has a simulator; log.csv has the loss on held-out episodes (validation)")
    for embodiment, result in results.items():
        typer.echo(f"{folder / 'best'}: {embodiment}: {result}")
