"""A user's own class by its import path: the page's example runs, and what is no policy is named with the fix."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from policy_servers import FRANKA, observation

from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.core.rig import load_rig
from vla_ros.policies import load_policy

ROOT = Path(__file__).parents[1]
BROKEN = """
class NoInfer:
    def __init__(self, embodiment): self.spec = None
    def reset(self): pass

class Failing:
    def __init__(self, embodiment): raise KeyError("weights")

class NeedsMore:
    def __init__(self, embodiment, weights): pass

class Bare: pass

NUMBER = 3
"""


def documented() -> str:
    """The first block of docs/policies.md, a module."""
    (code,) = re.findall(r"```python\n(# my_policies\.py.*?)```", (ROOT / "docs" / "policies.md").read_text(), re.DOTALL)
    return code


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's class, and broken ones, as modules on the path."""
    (tmp_path / "my_policies.py").write_text(documented())
    (tmp_path / "broken_policies.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_policies", "broken_policies"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_example_of_the_page_runs(example):
    policy = load_policy("my_policies:Down", FRANKA, {"speed_m_s": 0.5})
    policy.reset()
    seen = observation()
    chunk = policy.infer(seen).chunk
    assert np.allclose(np.diff(chunk.data[:, 2]), -0.05) and chunk.data[0, 2] == seen.proprioception.select(("tcp.z",))[0]
    code = (example / "my_policies.py").read_text()
    assert sum(bool(line.strip()) and not line.startswith("#") for line in code.splitlines()) <= 20, "a 20-line example"


@pytest.mark.parametrize(
    ("checkpoint", "options", "error", "expected"),
    [
        ("my_polices:Down", {}, ConfigError, "there is no module my_polices"),
        ("my_policies:Dwon", {}, ConfigError, "has no 'Dwon'; did you mean 'Down'"),
        ("my_policies:Down", {"speed": 1}, PolicyError, r"policy\.options\.speed: .* no such option; did you mean 'speed_m_s'"),
        ("my_policies:Down", {"embodiment": 1}, PolicyError, r"policy\.options\.embodiment"),
        ("broken_policies:NoInfer", {}, PolicyError, r"lacks spec \(a core.types.PolicySpec\), infer; see core/interfaces.py"),
        ("broken_policies:Failing", {}, PolicyError, "broken_policies:Failing failed while it was made: KeyError: 'weights'"),
        ("broken_policies:NeedsMore", {}, PolicyError, "cannot be called with the embodiment"),
        ("broken_policies:Bare", {}, PolicyError, "cannot be called with the embodiment"),
        ("broken_policies:NUMBER", {}, PolicyError, "a int, expected a class"),
        ("robovlms_franka", {"dt_s": 1}, PolicyError, "is a folder, which takes none"),
    ],
)
def test_what_is_no_policy_is_named(example, checkpoint, options, error, expected):
    with pytest.raises(error, match=expected):
        load_policy(checkpoint, FRANKA, options)


def test_the_options_of_a_rig_belong_to_its_checkpoint(tmp_path):
    text = (ROOT / "config" / "rigs" / "franka_sim.yaml").read_text()
    changed = re.sub(r"checkpoint: .*", "checkpoint: openpi://127.0.0.1:8000\n  options: {dt_s: 0.05, channels: [tcp.x]}", text)
    (tmp_path / "rig.yaml").write_text(changed)
    rig = load_rig(tmp_path / "rig.yaml")
    own = {"dt_s": 0.05, "channels": ["tcp.x"]}
    assert rig.policy_options("openpi://127.0.0.1:8000") == rig.policy_options("openpi://other:1") == own
    assert rig.policy_options("script") == rig.policy_options("lerobot:act") == rig.policy_options("a:B") == {}
    (tmp_path / "rig.yaml").write_text(text.replace("checkpoint: ", "option: {}\n  checkpoint: "))
    with pytest.raises(ConfigError, match=r"policy\.option: unknown key; did you mean 'options'"):
        load_rig(tmp_path / "rig.yaml")
