"""`vla policy describe NAME`: what a policy is made of, without the memory that it would take."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vla_ros.policies.checkpoint import CheckpointConfig


def policy(
    action: Annotated[Literal["describe"], typer.Argument(help="What to do.")],
    name: Annotated[str, typer.Argument(help="A file of config/policies, a checkpoint of config/checkpoints, or the path of either.")],
    preset: Annotated[str, typer.Option(help='"paper" or "tiny"; a checkpoint has its own.')] = "tiny",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prints modules with their parameters, how many learn in each stage, channels, cameras, chunk and prompt of a policy.

    Nothing is loaded: the network is built on torch's meta device.

    Examples:

      vla policy describe robovlms_kosmos2 --preset paper

      vla policy describe qwen_vla --preset tiny --json

      vla policy describe robovlms_franka
    """
    from vla_ros.policies.checkpoint import read_config

    folder = _checkpoint(name)
    config = read_config(folder) if folder else _preset(name, preset)
    described = describe(config, str(folder or name))
    typer.echo(jsonlib.dumps(described, indent=1) if json else _table(described))


def _checkpoint(name: str) -> Path | None:
    from vla_ros.core.embodiment import config_dir
    from vla_ros.policies.checkpoint import CONFIG

    folders = (config_dir() / "checkpoints" / name, Path(name).expanduser())
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def _preset(name: str, preset: str) -> CheckpointConfig:
    from vla_ros.policies.presets import load_preset

    return load_preset(name, preset)


def describe(config: CheckpointConfig, origin: str) -> dict[str, object]:
    """Returns what `vla policy describe --json` prints; parameters are counted once where modules share them."""
    import torch

    from vla_ros.core.devices import load_device
    from vla_ros.policies import SYSTEMS
    from vla_ros.policies.describe import describe as modules_of
    from vla_ros.policies.describe import trainable_by_stage
    from vla_ros.policies.network_policy import make_network

    sizes = dict(config.network)
    sizes.setdefault("vocabulary", 1000)  # of a preset that is not trained yet; only the tiny ones count it
    with torch.device("meta"):
        network = make_network(replace(config, network=sizes), origin)
    system = load_device(SYSTEMS, config.system)
    say = "pick up the red block and put it on the plate"
    return {
        "system": config.system,
        "preset": config.preset,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "modules": dict(modules_of(network)),
        "trainable": trainable_by_stage(network),
        "image": config.image,
        "chunk": {"horizon": config.horizon, "dt_s": config.dt_s},
        "embodiments": {
            name: {
                "cameras": list(layout.cameras),
                "state": list(layout.state),
                "channels": list(layout.channels),
                "prompt": system.prompt(layout, say, config.horizon, config.dt_s),
            }
            for name, layout in config.layouts.items()
        },
    }


def _table(described: dict[str, object]) -> str:
    chunk, image = described["chunk"], described["image"]
    lines = [f"{described['system']} {described['preset']}: {described['parameters']:,} parameters"]
    lines += [f"  {count:>15,}  {name}" for name, count in described["modules"].items()]
    lines += [f"  {count:>15,}  learn in stage {stage}" for stage, count in described["trainable"].items()]
    lines.append(f"chunk {chunk['horizon']} rows every {chunk['dt_s']} s, pictures {image['width']} x {image['height']} px")
    for name, layout in described["embodiments"].items():
        lines += [f"{name}:", *(f"  {key}: {', '.join(layout[key])}" for key in ("cameras", "state", "channels"))]
        lines.append(f"  prompt: {layout['prompt']}")
    return "\n".join(lines)
