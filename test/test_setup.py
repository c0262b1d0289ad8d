"""`make setup`, the environment of `vla`, the doctor: what can be checked without a fresh installation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla_ros.cli import checks, environment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import machine  # noqa: E402
import progress  # noqa: E402
import setup_env  # noqa: E402

WHEELS = machine.Ros("wheels", "kilted")
JAZZY = machine.Ros("distribution", "jazzy", (3, 12))


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)


def test_each_missing_thing_is_one_line_with_its_cure(no_tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000_000}))
    lines = machine.problems(WHEELS, None, tmp_path, installed=False)
    assert len(lines) == 5 and all("\n" not in line for line in lines)
    for line, cure in zip(lines, ["python3.11-venv", "install g++", "install cmake", "install make", "free some disk"], strict=True):
        assert cure in line
    assert len(machine.problems(WHEELS, None, tmp_path, installed=True)) == 4


def test_a_machine_without_wheels_is_told_to_source_ros(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert "source" in machine.problems(WHEELS, sys.executable, ROOT, installed=True)[0]
    assert not machine.problems(JAZZY, sys.executable, ROOT, installed=True)


def test_a_sourced_distribution_is_found_with_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lib/python3.12/site-packages/rclpy").mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{ROOT / '.venv'}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert machine.find_ros(ROOT / ".venv") == JAZZY
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(ROOT / ".venv"))
    assert machine.find_ros(ROOT / ".venv") == WHEELS


def test_a_forgotten_source_keeps_the_distribution_that_the_environment_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prefix = tmp_path / "opt"
    (prefix / "lib/python3.12/site-packages/rclpy").mkdir(parents=True)
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    monkeypatch.setenv("ROS_DISTRO", "")
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    record = {"kind": "distribution", "environment": {"AMENT_PREFIX_PATH": f"{tmp_path}{os.pathsep}{prefix}", "ROS_DISTRO": "jazzy"}}
    (tmp_path / "ros.json").write_text(json.dumps(record))
    setup_env.source_again()
    assert machine.find_ros(tmp_path) == JAZZY
    monkeypatch.delenv("AMENT_PREFIX_PATH")
    (tmp_path / "ros.json").write_text(json.dumps({"kind": "wheels", "environment": {"AMENT_PREFIX_PATH": str(tmp_path)}}))
    setup_env.source_again()
    assert machine.find_ros(tmp_path) == WHEELS


def test_constraints_pin_torch_on_a_cpu_and_numpy_only_beside_the_wheels():
    text = (ROOT / "requirements" / "constraints.txt").read_text()
    assert "://" not in text
    assert "torch==2.13.0" in setup_env.constraint_lines(text, WHEELS, free_torch=False).splitlines()
    assert "torch==" not in setup_env.constraint_lines(text, WHEELS, free_torch=True)
    of_distribution = setup_env.constraint_lines(text, JAZZY, free_torch=False).splitlines()
    assert "numpy<2" in of_distribution and not any(line.startswith(("numpy==", "pin==", "cmeel")) for line in of_distribution)
    assert any(line.startswith("mujoco==") for line in of_distribution)


def test_every_requirement_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines() if "==" in line}
    for name in setup_env.requirement_files(WHEELS):
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        wanted = {line.split("==")[0].strip().lower() for line in lines if line.strip() and not line.startswith("#")}
        assert wanted <= pinned | {"setuptools"}, f"{name}: {wanted - pinned} in constraints.txt"


def test_a_changed_message_redoes_the_build_but_not_the_packages(monkeypatch: pytest.MonkeyPatch):
    before = setup_env.step_keys(WHEELS)
    digest = setup_env.digest
    monkeypatch.setattr(setup_env, "digest", lambda *parts: digest(*parts, *(["x"] if ROOT / "vla_msgs/package.xml" in parts else [])))
    after = setup_env.step_keys(WHEELS)
    assert [step for step in before if before[step] != after[step]] == ["vla_msgs"]
    monkeypatch.setenv("TORCH", "torch>=2.13")
    with_own_torch = setup_env.step_keys(WHEELS)
    assert [step for step in before if with_own_torch[step] == before[step]] == ["venv"]


def test_a_failed_command_says_why_and_keeps_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOG", tmp_path / "setup.log")
    with pytest.raises(progress.StepFailed, match="the disk is full"):
        progress.run([sys.executable, "-c", "print('pip: No space left on device'); raise SystemExit(3)"], "installing")
    assert "No space left" in (tmp_path / "setup.log").read_text()


def test_cmake_paths_of_the_wheel_builder_are_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cmake = tmp_path / "share" / "std_msgs" / "export.cmake"
    cmake.parent.mkdir(parents=True)
    builder = "/opt/python/cp311-cp311"
    cmake.write_text(f"A;{builder}/include/python3.11;{builder}/lib/python3.11/site-packages/numpy/_core/include")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    monkeypatch.setattr(setup_env.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": json.dumps(["/numpy", "/python"])}))
    setup_env.mend_cmake_paths(WHEELS)
    assert cmake.read_text() == "A;/python;/numpy"


def test_environment_keeps_the_users_choice_and_changes_nothing_twice():
    base = {"PATH": "/usr/bin", "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    once = environment.environment(base)
    assert once["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET" and once["OMP_NUM_THREADS"] == "1"
    assert environment.environment(once) == once


def test_environment_of_a_distribution_puts_its_own_prefix_first(monkeypatch: pytest.MonkeyPatch):
    recorded = {"AMENT_PREFIX_PATH": "/venv:/opt/ros/jazzy", "ROS_DISTRO": "jazzy"}
    monkeypatch.setattr(environment, "ros_record", lambda: {"environment": recorded})
    prepared = environment.environment({"AMENT_PREFIX_PATH": "/opt/ros/jazzy:/ws"})
    assert prepared["AMENT_PREFIX_PATH"] == "/venv:/opt/ros/jazzy:/ws" and prepared["ROS_DISTRO"] == "jazzy"


def test_vla_runs_from_any_folder_with_nothing_sourced(tmp_path: Path):
    vla = ROOT / ".venv" / "bin" / "vla"
    if not vla.exists():
        pytest.skip("not made by make setup")
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run([vla, "doctor", "--json"], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    assert result.returncode == (0 if report["ok"] else 1)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert states["ROS"] == states["vla_msgs"] == states["DDS profile"] == "ok", report


def test_doctor_refuses_a_profile_with_a_small_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    profile = tmp_path / "small.xml"
    profile.write_text("<dds><transport_descriptor><segment_size>524288</segment_size></transport_descriptor></dds>")
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
    assert checks.dds_profile().state == "failed"
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(tmp_path / "absent.xml"))
    assert checks.dds_profile().state == "failed"
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", str(ROOT / "config/dds/fastdds.xml"))
    assert checks.dds_profile().state == "ok"


def test_doctor_names_the_cure_for_everything_that_failed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "run_python", lambda code, timeout_s=30: (1, "Traceback\nImportError: no such thing"))
    failed = [checks.ros(), checks.messages(), checks.graphics(), checks.franka()]
    assert all(check.state == "failed" and check.fix and "no such thing" in check.value for check in failed)
