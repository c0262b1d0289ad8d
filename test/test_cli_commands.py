"""The `vla` command line: help, errors as one line, exit statuses, and the rig that a demo starts for itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vla_ros.cli.main import COMMANDS
from vla_ros.cli.running_rig import OwnDomain, RunningRig, write_own_rig
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.core.rig import load_rig

ROOT = Path(__file__).parents[1]


def vla(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "120"}
    command = [sys.executable, "-m", "vla_ros.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_help_names_every_command():
    result = vla("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", ["up", "rollout", "demo", "eval", "train", "policy", "skill memory", "serve"])
def test_help_of_a_command_has_examples(command):
    result = vla(*command.split(), "--help")
    assert result.returncode == 0
    assert "Examples" in result.stdout and f"vla {command} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up", "frank_sim"), "did you mean 'franka_sim'?"),
        (("up", "franka_sim", "--executor", "ensembel"), "did you mean 'ensemble'?"),
        (("demo", "--executor", "ensemble:weighing=act"), "did you mean 'weighting'?"),
        (("demo", "--rig", "nowhere"), "not in config/rigs"),
        (("rollout", "do it", "--rig", "nowhere"), "not in config/rigs"),
        (("eval", "--instruction-set", "heldout"), "did you mean 'held-out'?"),
        (("eval", "--executors", "first,secnd"), "executor 'secnd' is unknown"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, tmp_path):
    result = vla(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("vla: ") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing is left behind by what did not start


def test_debug_shows_where_an_error_comes_from():
    assert "Traceback" in vla("--debug", "up", "frank_sim").stderr


def test_two_domains_of_ones_own_never_meet():
    first, second = OwnDomain(), OwnDomain()
    try:
        assert first.id != second.id
        assert first.address != second.address
        assert first.address.startswith("127.0.0.")
    finally:
        first.close()
        second.close()


def test_own_rig_differs_by_its_address_only(tmp_path):
    rig = load_rig(write_own_rig("franka_sim", "127.0.0.77", tmp_path / "run"))
    original = load_rig("franka_sim")
    assert rig.simulation.address == rig.robots["arm"].options["address"] == "127.0.0.77"
    assert rig.cameras == original.cameras and rig.policy == original.policy and rig.embodiment == original.embodiment


def test_own_rig_must_be_simulated(tmp_path):
    content = yaml.safe_load((ROOT / "config" / "rigs" / "franka_sim.yaml").read_text())
    del content["simulation"]
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="rig 'real' has no simulation"):
        write_own_rig(str(tmp_path / "real.yaml"), "127.0.0.77", tmp_path / "run")


def test_a_rig_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    with RunningRig(tmp_path / "missing.yaml", tmp_path / "rig.log", domain_id=99) as rig:
        rig._process.wait(30)
        with pytest.raises(DeviceError, match=r"ended by itself \(status 2\)(.|\n)*missing.yaml"):
            rig.check()
