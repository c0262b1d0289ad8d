"""Every file of config/policies describes a network that can be built, on the meta device: nothing is downloaded, no memory is taken."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.cli.policy import describe
from vla_ros.core.embodiment import config_dir
from vla_ros.core.yaml import read
from vla_ros.policies.presets import load_preset
from vla_ros.training.config import load_training

FILES: dict[str, Path] = {path.stem: path for path in sorted((config_dir() / "policies").glob("*.yaml"))}
PRESETS = [(name, preset) for name, path in FILES.items() for preset in read(path).plain()["presets"]]
# parameters; of Qwen-VLA the action expert alone, of AtomicVLA one skill's, which the papers' sizes give; of VITA-VLA and its teacher parts
PAPER = {
    ("qwen_vla", "paper"): ("expert", 1.149e9),
    ("atomic_vla", "paper"): ("library.experts.pick", 226.5e6),
    ("robovlms_kosmos2", "paper"): ("", 1.702e9),
    ("robovlms_paligemma", "paper"): ("", 2.961e9),
    ("vita_vla", "paper"): ("mapper", 5.770e6),
    ("vita_vla", "paper_libero"): ("mapper", 1.672e6),
    ("seer", "paper"): ("transformer", 12 * 12 * 1024**2),
    ("seer", "paper_libero"): ("transformer", 12 * 12 * 384**2),
    ("mol_msm_vla", "paper"): ("", 1.555e9),
}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_can_be_described(name: str, preset: str):
    described = describe(load_preset(name, preset), name)
    assert described["parameters"] > 0 and described["embodiments"]
    if preset.startswith("paper"):
        module, expected = PAPER[name, preset]
        assert described["modules"][module] == pytest.approx(expected, rel=0.01)
    else:
        assert 1e6 < described["parameters"] < 1e7


@pytest.mark.parametrize(("preset", "aligned"), [("paper", 31_503_360), ("paper_libero", 27_405_440)])
def test_stage_1_of_vita_vla_trains_what_the_paper_says(preset: str, aligned: int):
    """31.50 M and 27.41 M: the state encoder, one token, the mapper. In stage 2 the language model too, the vision never."""
    out = CliRunner().invoke(app, ["policy", "describe", "vita_vla", "--preset", preset, "--json"])
    described = json.loads(out.output)
    modules, trainable = described["modules"], described["trainable"]
    assert trainable["align"] == modules["state"] + modules["mapper"] + 3584 == aligned
    assert aligned == pytest.approx({"paper": 31.50e6, "paper_libero": 27.41e6}[preset], rel=0.005)
    assert trainable["frozen"] == aligned + modules["decoder"]
    assert trainable["finetune"] == trainable["only_ft"] == trainable["frozen"] + modules["backbone.language"]
    assert modules["backbone.vision.tower"] == pytest.approx(0.3e9, rel=0.02) and modules["state.arm"] == (6 + 1) * 3584
    assert described["chunk"]["horizon"] == 3


def test_stages_are_described():
    described = describe(load_preset("qwen_vla", "tiny"), "qwen_vla")
    assert described["trainable"] == {
        "t2a": described["modules"]["expert"], "cpt": described["parameters"], "sft": described["parameters"],
    }  # fmt: skip
    assert describe(load_preset("robovlms", "tiny"), "robovlms")["trainable"] == {}


def test_the_teacher_fits_its_student():
    for preset in ("paper", "paper_libero", "tiny"):
        teacher, student = load_preset("seer", preset), load_preset("vita_vla", preset)
        assert (teacher.layouts, teacher.horizon, teacher.image) == (student.layouts, student.horizon, student.image)
        assert teacher.network["width"] == student.network["teacher_width"]
        same = ("window", "text_length", "text_width", "keypoints", "vocabulary")
        assert [teacher.network.get(key) for key in same] == [student.network.get(key) for key in same]


def test_mol_msm_vla_trains_a_head_as_wide_as_its_backbone():
    """0.3 B +- 15 %: 24 blocks, one a layer, of 16 d^2 weights at the language model's width d = 896; all else is small beside them."""
    out = CliRunner().invoke(app, ["policy", "describe", "mol_msm_vla", "--preset", "paper", "--json"])
    described = json.loads(out.output)
    modules, trainable = described["modules"], described["trainable"]["skills"]
    assert trainable == pytest.approx(0.3e9, rel=0.15)
    assert trainable == described["parameters"] - modules["backbone"]
    assert modules["head.blocks"] == pytest.approx(24 * 16 * 896**2, rel=0.02) and modules["head.blocks"] > 0.98 * trainable
    assert modules["(own)"] == 64 * 896 and modules["backbone.vlm.language"] == pytest.approx(0.494e9, rel=0.01)
    assert described["trainable"]["pretrain"] == described["parameters"]


def test_the_tiny_preset_of_qwen_vla_is_what_its_training_trains():
    assert load_preset("qwen_vla", "tiny").network == load_training("qwen_vla").network
