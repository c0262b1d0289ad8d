"""`policy: lerobot`: what is refused before LeRobot sees it; and, in LeRobot's own environment, that its checkpoint gives its actions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from policy_servers import FRANKA, STAMP_NS

from vla_ros.core.errors import NotInstalled, PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.lerobot import CONFIG, PROCESSORS, WEIGHTS

ROOT = Path(__file__).parents[1]
OPTIONS = {"dt_s": 0.1, "actions": "absolute"}
STATE = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.width")


def checkpoint(folder: Path, **files: object) -> str:
    """A folder that looks like LeRobot's, with `files` (their names without suffix) replaced; None leaves one out."""
    content = {"config": {"type": "act"}, **{Path(name).stem: {"steps": [{"registry_name": "to_batch_processor"}]} for name in PROCESSORS}}
    for name, value in {**content, **files}.items():
        if value is not None:
            (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    (folder / WEIGHTS).write_bytes(b"")
    return f"lerobot:{folder}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config": None}, r"config\.json: no such file"),
        ({"policy_preprocessor": None}, r"policy_preprocessor\.json: no such file.*migrate_policy_normalization"),
        ({"config": "{"}, r"config\.json: not JSON"),
        ({"config": "[]"}, r"config\.json: holds a list"),
        ({"config": {"type": 3}}, "type 3, expected the name of a LeRobot policy"),
        ({"policy_postprocessor": {"steps": 1}}, "steps 1, expected a list"),
        ({"policy_preprocessor": {"steps": [{"class": "os.system"}]}}, "names the class 'os.system'; code of a checkpoint is never run"),
        ({"policy_preprocessor": {"steps": [{"registry_name": "x", "class": "a.B"}]}}, "names the class 'a.B'"),
        ({"policy_preprocessor": {"steps": [{"registry_name": "x", "state_file": "../other"}]}}, "expected a file of the folder"),
        ({"policy_preprocessor": {"steps": [{}]}}, "code of a checkpoint is never run"),
    ],
)
def test_a_folder_that_lerobot_must_not_see(tmp_path, files, expected):
    with pytest.raises(PolicyError, match=expected):
        load_policy(checkpoint(tmp_path, **files), FRANKA, OPTIONS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, r"policy\.options\.dt_s is missing.*1 / fps"),
        ({**OPTIONS, "device": "gpu"}, r"policy\.options\.device = 'gpu'; did you mean 'cpu'"),
        ({**OPTIONS, "fps": 30}, r"policy\.options\.fps: lerobot has no such option"),
        ({**OPTIONS, "dt_s": -1}, r"policy\.options\.dt_s = -1"),
    ],
)
def test_options_are_checked_first(tmp_path, options, expected):
    with pytest.raises(PolicyError, match=expected):
        load_policy(checkpoint(tmp_path), FRANKA, options)


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed here")
def test_without_lerobot_the_message_says_what_to_install(tmp_path):
    with pytest.raises(NotInstalled, match=r"need the package lerobot .*pip install 'lerobot==0\.4\.4'"):
        load_policy(checkpoint(tmp_path), FRANKA, OPTIONS)


def test_an_act_checkpoint_of_lerobot_gives_its_actions(tmp_path):
    """Saved by LeRobot, served in its environment, driven from ours over openpi's protocol: the same numbers as LeRobot's own rollout."""
    python = os.environ.get("VLA_LEROBOT_PYTHON")
    if not python:
        pytest.skip("VLA_LEROBOT_PYTHON names no Python with LeRobot; docs/policies.md says how to make its environment")
    bare = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"} | {"PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("lerobot_checkpoint.py")
    subprocess.run([python, str(script), str(tmp_path)], env=bare, check=True, capture_output=True, timeout=120)
    assert "IMAGENET" in (tmp_path / CONFIG).read_text(), "LeRobot would fetch these weights"
    told = [f"--option={key}={value}" for key, value in OPTIONS.items()]
    command = [python, "-m", "vla_ros.cli", "serve", f"lerobot:{tmp_path}", "--embodiment", "franka", "--port", "0", *told]
    with subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next((line for line in server.stdout if "openpi://" in line), "")
            address = next(word for word in line.split() if word.startswith("openpi://"))
            remote = load_policy(address, FRANKA, {"timeout_s": 60})
            random = np.random.default_rng(0)
            frames = {name: Frame(STAMP_NS, random.integers(0, 255, (48, 64, 3), dtype=np.uint8), 0, name) for name in FRANKA.cameras}
            state = np.linspace(0.1, 0.7, 7, dtype=np.float32)
            rows = remote.infer(Observation(STAMP_NS, frames, Proprioception(STAMP_NS, STATE, state), "stay")).chunk.data
        finally:
            server.terminate()
    expected = np.array(json.loads((tmp_path / "expected.json").read_text()))
    assert np.allclose(rows[:, :6], expected[:, :6], atol=1e-6) and np.array_equal(rows[:, 6], expected[:, 6] > 0.5)
