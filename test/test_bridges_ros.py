"""Policies of others through the policy node: on real topics, against a fake robot and fake cameras."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from fake_rig import FakeRig, wait_for
from policy_servers import TCP, foreign, openpi_python
from test_nodes_policy import aborted, rig_with

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_ros.nodes import msgs
from vla_ros.policies.serving.wire import pack

ROOT = Path(__file__).parents[1]
FOREIGN = {"channels": [*TCP, "gripper.closed"], "actions": "absolute", "dt_s": 0.1, "cameras": {}, "state": {"state": list(TCP)}}
BARE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def command(*arguments: object, **environment: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([str(word) for word in arguments], env=BARE | environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def vla_serve(port: int) -> Iterator[subprocess.Popen]:
    """`vla serve` of a policy that holds still; listens when this returns."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    with command(
        sys.executable, "-m", "vla_ros.cli", "serve", "dummy_policies:Still", "--embodiment", "franka", "--port", port, PYTHONPATH=paths
    ) as server:
        assert any("openpi://" in line for line in server.stdout)
        yield server


def drives(rig: FakeRig) -> None:
    """A goal runs to its time limit, and the robot gets what the server's chunks say."""
    for log in (rig.commands, rig.chunks):
        log.clear()
    rig.state, rig.reason = RobotStatus.STATE_HOLD, ""
    status, result = rig.result(rig.send(time_limit_s=1.0))
    assert (status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, "time_limit"), result.reason
    assert len(rig.chunks) > 3 and "ws://127.0.0.1" in rig.chunks[-1].policy
    actions = [msgs.action_of(item) for item in rig.commands if item.mode == RobotCommand.MODE_TCP_POSE]
    last = msgs.chunk_of(rig.chunks[-1])
    assert len(actions) > 10 and np.allclose(actions[-1].data[:6], last.data[0, :6], atol=1e-6)


def test_vla_serve_drives_dies_and_comes_back(tmp_path):
    port = free_port()
    with vla_serve(port) as server, rig_with(tmp_path, f"openpi://127.0.0.1:{port}") as rig:
        drives(rig)
        goal = rig.send(time_limit_s=20.0)
        wait_for(lambda: any(item.mode == RobotCommand.MODE_TCP_POSE for item in rig.commands[-5:]), "the arm follows")
        server.send_signal(signal.SIGKILL)
        status, result = rig.result(goal)
        assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, "aborted") and f"ws://127.0.0.1:{port}" in result.reason
        wait_for(lambda: rig.commands[-1].mode == RobotCommand.MODE_HOLD and rig.source == "none", "a hold and no source")
        aborted(rig, f"ws://127.0.0.1:{port}")
        with vla_serve(port):
            drives(rig)


def answers(kind: str):
    """A server that answers the first eight observations well, then is slow or answers for another robot."""
    count = 0

    def answer(message: object) -> bytes | None:
        nonlocal count
        count += 1
        if count > 8 and kind == "slow":
            return None
        return pack({"actions": np.tile([0.5, 0.0, 0.3, np.pi, 0.0, 0.0, 0.0], (16, 1))[:, : 6 if count > 8 and kind == "wrong" else 7]})

    return answer


@pytest.mark.parametrize(("kind", "words"), [("slow", "no answer"), ("wrong", "6")])
def test_a_foreign_server_that_goes_wrong_is_named_and_the_node_lives(tmp_path, kind: str, words: str):
    with foreign(answers(kind)) as port, rig_with(tmp_path, f"openpi://127.0.0.1:{port}", FOREIGN | {"timeout_s": 0.5}) as rig:
        reason = rig.result(rig.send(time_limit_s=20.0))[1].reason
        assert f"ws://127.0.0.1:{port}" in reason and words in reason
        assert len(rig.chunks) >= 5, "it was driven before"
        wait_for(lambda: rig.commands[-1].mode == RobotCommand.MODE_HOLD and rig.source == "none", "a hold and no source")
        assert rig.policy.process.poll() is None


def test_openpis_own_server_drives_the_node(tmp_path):
    with command(openpi_python(), ROOT / "benchmarks" / "serve_peer.py", "serve") as server:
        address = f"openpi://127.0.0.1:{int(server.stdout.readline())}"
        with rig_with(tmp_path, address, FOREIGN | {"timeout_s": 20}) as rig:
            drives(rig)


def test_an_act_checkpoint_that_lerobot_saved_drives_the_node(tmp_path):
    """Saved and run by LeRobot in its own environment, behind `vla serve`."""
    python = os.environ.get("VLA_LEROBOT_PYTHON")
    if not python:
        pytest.skip("VLA_LEROBOT_PYTHON names no Python with LeRobot; docs/policies.md says how to make its environment")
    subprocess.run([python, ROOT / "test" / "lerobot_checkpoint.py", tmp_path], env=BARE, check=True, capture_output=True, timeout=120)
    port = free_port()
    told = ["--option", "dt_s=0.1", "--option", "actions=absolute"]
    with command(
        python, "-m", "vla_ros.cli", "serve", f"lerobot:{tmp_path}", "--embodiment", "franka", "--port", port, *told, PYTHONPATH=str(ROOT)
    ) as server:
        assert any("openpi://" in line for line in server.stdout)
        with rig_with(tmp_path, f"openpi://127.0.0.1:{port}", {"timeout_s": 20}) as rig:
            reason = rig.result(rig.send(time_limit_s=1.0))[1].reason
            wait_for(lambda: rig.chunks, "a chunk")
            chunk = msgs.chunk_of(rig.chunks[0])
    assert chunk.data.shape[1] == 7 and np.isfinite(chunk.data).all(), reason
