"""Measures a checkpoint in the fast loop: `python -m vla_ros.training.measure CHECKPOINT [--episodes 100] [--record]`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from vla_ros.core.errors import ConfigError
from vla_ros.policies import find_checkpoint
from vla_ros.policies.checkpoint import CONFIG
from vla_ros.training.closed_loop import Result, check_closed_loop
from vla_ros.training.config import load_training
from vla_ros.training.phrasings import PHRASINGS
from vla_ros.training.sources import Source

# What is varied from the plain check: rows executed of each chunk, age of the observation in steps of 0.1 s.
VARIATIONS = {
    "canonical, 8 rows": {"execute_steps": 8},
    "canonical, 4 rows": {"execute_steps": 4},
    "canonical, 2 rows": {"execute_steps": 2},
    "canonical, 4 rows, 0.1 s old": {"execute_steps": 4, "delay_steps": 1},
    "canonical, 1 row, 0.2 s old": {"execute_steps": 1, "delay_steps": 2},
}


def measure(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or the name of one in config/checkpoints.")],
    config: Annotated[str, typer.Option(help="Training configuration, for the simulator.")] = "robovlms_franka",
    episodes: Annotated[int, typer.Option(min=1, help="Scenes of each variation, from --seed upwards.")] = 100,
    phrasing_episodes: Annotated[int, typer.Option(min=0, help="Scenes of each held-out phrasing; 0 leaves them out.")] = 40,
    seed: Annotated[int, typer.Option(help="First scene.")] = 0,
    record: Annotated[bool, typer.Option("--record", help="Write the figures into the checkpoint's config.json.")] = False,
) -> None:
    """Prints success and wrong-object rates with the rows executed, the observation's age and the phrasing varied."""
    torch.set_num_threads(1)
    settings, folder = load_training(config), find_checkpoint(checkpoint)
    rows: dict[str, Result] = {}

    def check(source: Source, name: str, count: int, options: dict[str, int]) -> None:
        name = f"{source.embodiment}, {name}" if len(settings.sources) > 1 else name
        rows[name] = check_closed_loop(settings, source, folder, range(seed, seed + count), **options)
        typer.echo(f"{name}: {rows[name]}")

    simulated = [source for source in settings.sources if source.simulator]
    if not simulated:
        raise ConfigError(f"{config}: no source has a simulator: name a configuration that has one with --config")
    for source in simulated:
        for name, options in VARIATIONS.items():
            check(source, name, episodes, options)
        for index in range(PHRASINGS if phrasing_episodes else 0):
            check(source, f"held-out phrasing {index + 1}", phrasing_episodes, {"phrasing": index})
    if record:
        record_results(folder, seed, rows)


def record_results(folder: Path, seed: int, rows: dict[str, Result]) -> None:
    """Writes the figures into `training.fast_loop` of config.json."""
    record(folder, {"fast_loop": {"first_seed": seed, **{name: asdict(result) for name, result in rows.items()}}})


def record(folder: Path, figures: dict[str, object]) -> None:
    """Puts figures into `training` of a checkpoint's config.json."""
    path = folder / CONFIG
    values = json.loads(path.read_text())
    values["training"] |= figures
    partial = path.with_name(f".{CONFIG}.new")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    typer.run(measure)
