"""Systems as `config/policies/*.yaml` describe them: sizes by preset, and the robots that they are made for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vla_ros.core import yaml
from vla_ros.core.embodiment import find_config, load_embodiment
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.policies.checkpoint import CheckpointConfig
from vla_ros.policies.layout import layout_for


@dataclass(frozen=True)
class PolicyFile:
    """The keys of a policy file.

    Args:
        system: a name of `policies.SYSTEMS`.
        paper: where it comes from.
        embodiments: cameras of each robot, in the order of the network.
        image: {"width", "height"} px by preset.
        horizon: rows of a chunk by preset.
        dt_s: between rows, by preset.
        presets: the system's own sizes, "paper" and "tiny".
    """

    system: str
    paper: str
    embodiments: dict[str, tuple[str, ...]]
    image: dict[str, dict[str, int]]
    horizon: dict[str, int]
    dt_s: dict[str, float]
    presets: dict[str, dict[str, object]]

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("image", "horizon", "dt_s"):
            if set(getattr(self, key)) != set(self.presets):
                yield key, f"has {', '.join(getattr(self, key))}; the presets are {', '.join(self.presets)}"


def load_preset(name_or_path: str, preset: str) -> CheckpointConfig:
    """Reads a policy file and returns what an untrained checkpoint of `preset` would say. Raises ConfigError."""
    path = find_config("policies", name_or_path)
    file = yaml.load(path, PolicyFile)
    if preset not in file.presets:
        raise ConfigError(f"{path}: preset '{preset}'; {did_you_mean(preset, file.presets)}")
    layouts = {name: layout_for(load_embodiment(name), cameras) for name, cameras in file.embodiments.items()}
    sizes = file.presets[preset]
    return CheckpointConfig(file.system, preset, layouts, file.image[preset], file.horizon[preset], file.dt_s[preset], sizes)
