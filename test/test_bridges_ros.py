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
from policy_servers import FRANKA, TCP, Echo, foreign, openpi_python, served
from test_nodes_policy import aborted, rig_with
from test_policy_class import documented

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import Action, ActionChunk
from vla_ros.nodes import msgs
from vla_ros.policies import load_policy
from vla_ros.policies.serving.wire import pack

ROOT = Path(__file__).parents[1]
FOREIGN = {"channels": [*TCP, "gripper.closed"], "actions": "absolute", "dt_s": 0.1, "cameras": {}, "state": {"state": list(TCP)}}
# LeRobot's first inferences on a busy machine.
PATIENT = {"start_timeout_s": 120.0, "hold_limit_s": 30.0, "robot_silence_s": 30.0}
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
def vla_serve(port: int, policy: str) -> Iterator[subprocess.Popen]:
    """`vla serve` of one of `dummy_policies`; listens when this is entered."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    with command(
        sys.executable, "-m", "vla_ros.cli", "serve", f"dummy_policies:{policy}", "--embodiment", "franka", "--port", port, PYTHONPATH=paths
    ) as server:
        assert any("openpi://" in line for line in server.stdout)
        yield server


def actions_of(rig: FakeRig) -> list[Action]:
    return [msgs.action_of(item) for item in rig.commands if item.mode == RobotCommand.MODE_TCP_POSE]


def follows(action: Action, chunk: ActionChunk) -> bool:
    """Whether `chunk` says `action` for its instant."""
    row, rows = (action.stamp_ns - chunk.stamp_ns) * 1e-9 / chunk.dt_s, np.arange(len(chunk.data))
    expected = [np.interp(row, rows, column) for column in chunk.data[:, :6].T]
    return 0 <= row <= rows[-1] and np.allclose(action.data[:6], expected, atol=1e-6)


def bear_the_stamps_of_pictures(chunks: list[ActionChunk], rig: FakeRig) -> bool:
    """The first ones, of what was seen before the motion, are placed where it began."""
    return {chunk.stamp_ns for chunk in chunks[2:]} <= set(rig.stamps_ns)


def drives(rig: FakeRig) -> list[ActionChunk]:
    """A goal runs until it is cancelled, and what the robot gets is what one of the chunks says for that instant."""
    for log in (rig.commands, rig.chunks):
        log.clear()
    rig.state, rig.reason = RobotStatus.STATE_HOLD, ""
    goal = rig.send(time_limit_s=60.0)
    asked = goal.get_result_async()
    wait_for(lambda: asked.done() or (len(rig.chunks) > 4 and len(actions_of(rig)) > 20), "five chunks and their actions", 60.0)
    goal.cancel_goal_async()
    status, result = rig.result(goal)
    assert (status, result.outcome) == (GoalStatus.STATUS_CANCELED, "canceled"), result.reason
    holds(rig)
    chunks, actions = [msgs.chunk_of(chunk) for chunk in rig.chunks], actions_of(rig)
    assert all(any(follows(action, chunk) for chunk in chunks) for action in actions)
    return chunks


def is_driven(rig: FakeRig) -> None:
    wait_for(lambda: any(item.mode == RobotCommand.MODE_TCP_POSE for item in rig.commands[-5:]), "the arm follows")


def holds(rig: FakeRig) -> None:
    wait_for(lambda: rig.commands[-1].mode == RobotCommand.MODE_HOLD and rig.source == "none", "a hold and no source")


def test_vla_serve_comes_late_drives_dies_and_comes_back(tmp_path):
    """All with one policy node, which is never started again."""
    port = free_port()
    where = f"ws://127.0.0.1:{port}"
    with rig_with(tmp_path, f"openpi://127.0.0.1:{port}", {"timeout_s": 1.2}) as rig:
        wait_for(lambda: "start it with `vla serve`" in rig.policy.log.read_text(), "the node says what it lacks")
        with vla_serve(port, "Rising") as server:
            chunks = drives(rig)
            assert where in chunks[0].policy
            assert chunks[0].data[-1, 2] - chunks[0].data[0, 2] == pytest.approx(0.015)
            assert bear_the_stamps_of_pictures(chunks, rig)
            goal = rig.send(time_limit_s=20.0)
            is_driven(rig)
            server.send_signal(signal.SIGKILL)
            status, result = rig.result(goal)
        assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, "aborted") and where in result.reason
        assert "no connection" in result.reason
        holds(rig)
        assert rig.commands[-1].reason == result.reason
        aborted(rig, where)
        with served(Echo(load_embodiment("piper")), port=port):
            aborted(rig, "serves another policy than before: embodiment is 'piper', was 'franka'")
        with vla_serve(port, "Stopping"):
            aborted(rig, f"{where}: no answer within 1.2 s")
        with vla_serve(port, "Rising"):
            drives(rig)
        assert rig.policy.process.poll() is None


def test_the_class_of_the_page_drives_the_node(tmp_path):
    (tmp_path / "my_policies.py").write_text(documented())
    with rig_with(tmp_path, "my_policies:Down", {"speed_m_s": 0.5}) as rig:
        chunks = drives(rig)
    assert {chunk.policy for chunk in chunks} == {"down"} and bear_the_stamps_of_pictures(chunks, rig)
    assert all(np.allclose(chunk.data[:, 2], 0.3 - 0.05 * np.arange(16)) for chunk in chunks), "down from where the robot is measured"


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
        holds(rig)
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
        with rig_with(tmp_path, f"openpi://127.0.0.1:{port}", {"timeout_s": 60}, **PATIENT) as rig:
            chunk = drives(rig)[-1]
        seen = rig.observation(chunk.stamp_ns)
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA, {"timeout_s": 60})
        assert np.allclose(chunk.data, remote.infer(seen).chunk.data, atol=1e-6), "the same without ROS between"
        remote.close()
    assert chunk.data.shape == (8, 7)
