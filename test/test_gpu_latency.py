"""The GPU benchmark where there is no GPU: it says so, writes nothing and is no failure."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: run benchmarks/gpu_latency.py itself")
def test_without_a_gpu_nothing_is_claimed(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_latency.py"), "--json", str(tmp_path / "out.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "no CUDA device: nothing was measured, nothing is claimed"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("policy", ["qwen_vla", "robovlms"])
def test_its_observation_is_one_that_the_network_takes(policy):
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu_latency import observation
    from vla_ros.policies.network_policy import make_network
    from vla_ros.policies.presets import load_preset

    config = load_preset(policy, "tiny")
    config.network["vocabulary"] = 1000
    with torch.no_grad():
        actions = make_network(config, "test").eval().predict(observation(config, "cpu"))
    assert actions.shape == (1, config.horizon, len(next(iter(config.layouts.values())).channels)) and actions.isfinite().all()
