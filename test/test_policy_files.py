"""Every file of config/policies describes a network that can be built, on the meta device: nothing is downloaded, no memory is taken."""

from pathlib import Path

import pytest

from vla_ros.cli.policy import describe
from vla_ros.core.embodiment import config_dir
from vla_ros.core.yaml import read
from vla_ros.policies.presets import load_preset
from vla_ros.training.config import load_training

FILES: dict[str, Path] = {path.stem: path for path in sorted((config_dir() / "policies").glob("*.yaml"))}
PRESETS = [(name, preset) for name, path in FILES.items() for preset in read(path).plain()["presets"]]
# parameters; of Qwen-VLA the action expert alone, of AtomicVLA one skill's expert: those the papers' sizes give
PAPER = {
    "qwen_vla": ("expert", 1.149e9),
    "atomic_vla": ("library.experts.pick", 226.5e6),
    "robovlms_kosmos2": ("", 1.702e9),
    "robovlms_paligemma": ("", 2.961e9),
}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_can_be_described(name: str, preset: str):
    described = describe(load_preset(name, preset), name)
    assert described["parameters"] > 0 and described["embodiments"]
    if preset == "paper":
        module, expected = PAPER[name]
        assert described["modules"][module] == pytest.approx(expected, rel=0.01)
    else:
        assert 1e6 < described["parameters"] < 1e7


def test_the_tiny_preset_of_qwen_vla_is_what_its_training_trains():
    assert load_preset("qwen_vla", "tiny").network == load_training("qwen_vla").network
