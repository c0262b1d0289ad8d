"""How `vla up` runs nodes: command lines, and real processes that die, stop and are left alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from vla_ros.cli.processes import command_line, full_name
from vla_ros.core.rig import NodeSpec, load_rig, node_specs

# The package `fake` has nodes that are plain scripts: no ROS needed to see how processes are kept.
NODES = {
    "steady": """
        import signal, sys, time
        signal.signal(signal.SIGINT, lambda *_: (print("steady says goodbye", flush=True), sys.exit(0)))
        print("steady runs", flush=True)
        while True: time.sleep(0.05)
    """,
    "deaf": """
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("deaf runs", flush=True)
        while True: time.sleep(0.05)
    """,
    "mortal": """
        import sys
        print("the gripper is not there", flush=True)
        sys.exit(3)
    """,
    "quitter": "print('done', flush=True)",
}
RUNNER = """
import os, sys
import vla_ros.cli.processes as processes
from vla_ros.core.rig import NodeSpec
from vla_ros.core.errors import VlaError
processes.STOP_WAIT_S = 1.0
try:
    specs = [NodeSpec("fake", name, name) for name in sys.argv[1:]]
    processes.run_nodes(specs, os.environ, on_started=lambda: print("all started", flush=True))
except VlaError as error:
    print("ERROR", error, flush=True)
    sys.exit(2)
"""


@pytest.fixture
def run(tmp_path):
    """Starts RUNNER with the named nodes; kills what is left of them afterwards."""
    folder = tmp_path / "fake" / "nodes"
    folder.mkdir(parents=True)
    for name, text in NODES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    started = []

    def start(*names):
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, *names], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def read_until(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"'{text}' never came:\n{''.join(lines)}")


def fake_nodes():
    """Process ids of nodes of the package `fake` that were started by this test run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"-m" in words and any(word.startswith(b"fake.nodes.") for word in words):
                found.append(int(entry.name))
    return found


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_command_line_of_a_node():
    spec = NodeSpec("vla_ros", "camera_node", "front", "/camera", {"rig": "franka_sim", "device": "front"}, [("image", "picture")], nice=5)
    assert command_line(spec, python="python") == [
        "nice", "-n", "5", "python", "-m", "vla_ros.nodes.camera_node", "--ros-args", "-r", "__node:=front", "-r", "__ns:=/camera",
        "-r", "image:=picture", "-p", "rig:='franka_sim'", "-p", "device:='front'",
    ]  # fmt: skip
    assert full_name(spec) == "/camera/front"


@pytest.mark.parametrize("value", ["1e3", "no", "", "it's: a # test", True, 7, 0.5])
def test_parameters_keep_their_type(value):
    text = command_line(NodeSpec("vla_ros", "robot_node", "arm", parameters={"p": value}))[-1].removeprefix("p:=")
    read = yaml.safe_load(text)
    assert read == value and type(read) is type(value)


def test_every_node_of_the_simulated_rig_has_a_module():
    specs = node_specs(load_rig("franka_sim"), policy="script", executor="ensemble:weighting=age,m=2")
    assert {full_name(spec) for spec in specs} == {"/simulation", "/arm", "/camera/front", "/camera/wrist", "/proprioception", "/policy"}
    for spec in specs:
        module = command_line(spec)[command_line(spec).index("-m") + 1]
        assert (Path(__file__).parents[1] / Path(*module.split("."))).with_suffix(".py").is_file(), module


def test_a_node_that_dies_ends_the_rig_and_is_named(run):
    process = run("steady", "mortal")
    output = process.stdout.read()
    assert process.wait(20) == 2
    assert "ERROR node /mortal ended with status 3" in output
    assert output.rindex("the gripper is not there") > output.index("ERROR")
    assert not fake_nodes()


def test_a_node_that_ends_without_an_error_is_an_error_too(run):
    process = run("steady", "quitter")
    assert "node /quitter ended with status 0" in process.stdout.read()
    assert process.wait(20) == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_nodes_cleanly(run, signum):
    process = run("steady")
    read_until(process, "steady runs")
    process.send_signal(signum)
    assert "steady says goodbye" in process.stdout.read()
    assert process.wait(20) == 0
    assert not fake_nodes()


def test_a_node_that_does_not_listen_is_killed(run):
    process = run("deaf")
    read_until(process, "deaf runs")
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(20) == 0
    assert not fake_nodes()


def test_on_started_is_called(run):
    process = run("steady")
    read_until(process, "all started")


def test_nodes_end_with_a_killed_vla(run):
    process = run("steady", "deaf")
    read_until(process, "runs")
    read_until(process, "runs")
    assert len(fake_nodes()) == 2
    process.kill()
    process.wait()
    assert wait_until(lambda: not fake_nodes())


def test_a_node_whose_vla_died_while_it_started_ends_too():
    """The parent that it is told of is gone already: there will be no signal of its death."""
    code = "import os; from vla_ros.cli.processes import die_with_parent; die_with_parent(15, os.getppid() + 1); print('lives')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True
    )
    assert ended.returncode == -signal.SIGTERM and b"lives" not in ended.stdout
