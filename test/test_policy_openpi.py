"""`policy: openpi`: what it asks a server, what it makes of the answer, and that it never waits long or dies of one."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_servers import FRANKA, STAMP_NS, TCP, Echo, foreign, observation, openpi_python, served
from test_policy_checkpoint import LAYOUTS
from test_policy_fuzz import QWEN
from websockets.server import ServerProtocol
from wire_fuzz import mutations

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DeviceError, PolicyError
from vla_ros.core.rotations import matrix_to_rotvec, rotvec_to_matrix
from vla_ros.core.types import Inference, Prefix, SkillPlan
from vla_ros.policies import load_policy
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.foreign import letterbox
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.openpi import OpenPi
from vla_ros.policies.serving.wire import pack, unpack
from vla_ros.policies.text import build_tokenizer

ROOT = Path(__file__).parents[1]
CHANNELS = [*TCP, "gripper.closed"]
FOREIGN = {"channels": CHANNELS, "actions": "absolute", "dt_s": 0.05}
PIPER = load_embodiment("piper")


def rows(value=0.25, shape=(8, 7)) -> bytes:
    return pack({"actions": np.full(shape, value), "server_timing": {"infer_ms": 3.5}})


def client(port: int, **options) -> OpenPi:
    return load_policy(f"openpi://127.0.0.1:{port}", FRANKA, {**FOREIGN, "timeout_s": 5, **options})


def test_vla_serve_needs_no_options():
    policy = Echo()
    with served(policy) as port:
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
        spec, own = remote.spec, policy.spec
        assert (spec.cameras, spec.state, spec.channels, spec.horizon, spec.dt_s) == (
            own.cameras, own.state, own.channels, own.horizon, own.dt_s,
        )  # fmt: skip
        seen = observation(size=(640, 480))
        first, second = (remote.infer(seen).chunk for _ in range(2))
        remote.close()
    assert (first.stamp_ns, first.sequence, second.sequence, first.embodiment) == (STAMP_NS, 0, 1, "franka")
    assert np.allclose(first.data, np.tile(np.append(seen.proprioception.select(TCP), 0.0), (4, 1)))
    assert first.info["server_infer_ms"] >= 0
    (asked, _) = policy.seen
    assert asked.instruction == "stay" and asked.stamp_ns == STAMP_NS
    assert all(np.array_equal(asked.frames[name].image, frame.image) for name, frame in seen.frames.items())


def test_a_reset_begins_a_new_history_at_vla_serve():
    policy = Echo()
    with served(policy) as port:
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
        remote.infer(observation())
        before = policy.resets
        remote.reset()
        assert remote.infer(observation()).chunk.sequence == 0
        assert policy.resets == before + 1
        remote.close()


def test_the_instant_and_the_plan_of_the_server_count():
    class Thinking(Echo):
        def infer(self, seen):
            chunk = replace(super().infer(seen).chunk, stamp_ns=seen.stamp_ns + 20_000_000)
            return Inference(chunk, SkillPlan(chunk.stamp_ns, ("pick",), 0, "pick", "step 1/1"))

    with served(Thinking()) as port:
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
        answer = remote.infer(observation())
        remote.close()
    assert answer.chunk.stamp_ns == STAMP_NS + 20_000_000
    assert answer.plan == SkillPlan(STAMP_NS + 20_000_000, ("pick",), 0, "pick", "step 1/1")


def test_a_prefix_is_continued_at_vla_serve_as_here(tmp_path):
    """Real-time chunking with a flow policy: the chunk is the local policy's with the same prefix and seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["stay"])
    network = {**QWEN, "vocabulary": tokenizer.get_vocab_size()}
    config = CheckpointConfig("qwen_vla", "tiny", LAYOUTS, {"width": 64, "height": 48}, 16, 0.1, network)
    write_checkpoint(tmp_path, config, make_network(config, "test").state_dict(), tokenizer)
    here, there = (load_policy(str(tmp_path), FRANKA) for _ in range(2))
    seen = observation()
    rows = np.tile([*seen.proprioception.select(TCP), 1.0], (16, 1)) + 0.05
    held = replace(seen, prefix=Prefix(STAMP_NS, 0.1, here.spec.channels, rows, np.where(np.arange(16) < 4, 1.0, 0.0)))
    with served(there) as port:
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA, {"timeout_s": 60})
        for asked in (held, seen, replace(held, prefix=replace(held.prefix, data=rows[:6], weights=np.ones(6)))):
            here.reset()
            remote.reset()
            assert np.array_equal(remote.infer(asked).chunk.data, here.infer(asked).chunk.data)
        here.reset()
        free = here.infer(seen).chunk.data
        remote.reset()
        guided = remote.infer(held).chunk.data
        assert np.abs(guided - rows)[:4, :6].mean() < np.abs(free - rows)[:4, :6].mean(), "it is continued"
        with pytest.raises(PolicyError, match=r"a prefix every 0.2 s of tcp.x, .* does not continue these chunks"):
            remote.infer(replace(held, prefix=replace(held.prefix, dt_s=0.2)))
        remote.close()
    here.reset()
    assert np.array_equal(here.infer_batch([held, seen])[0].chunk.data, guided), "in a batch too"


def test_a_foreign_server_gets_no_prefix():
    asked = []

    def answer(message):
        asked.append(unpack(message))
        return rows()

    seen = observation()
    with foreign(answer) as port:
        client(port).infer(replace(seen, prefix=Prefix(STAMP_NS, 0.05, tuple(CHANNELS), np.zeros((8, 7)), np.ones(8))))
    assert "prefix" not in asked[0] and "prefix_weights" not in asked[0]


def test_a_server_that_comes_back_as_another_is_refused():
    with served(Echo()) as port:
        remote = load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
        remote.infer(observation())
    remote.reset()  # as between two rollouts
    with served(Echo(PIPER), port=port):
        for _ in range(2):
            with pytest.raises(PolicyError, match="serves another policy than before: embodiment is 'piper', was 'franka'") as refused:
                remote.infer(observation())
        assert refused.value.reason == "server"
    with served(Echo(), port=port):
        remote.reset()
        assert remote.infer(observation()).chunk.data.shape == (4, 7)
        remote.close()


def test_a_foreign_server_gets_the_keys_of_openpi():
    asked = []

    def answer(message):
        asked.append(unpack(message))
        return rows()

    with foreign(answer) as port:
        chunk = client(port).infer(observation(size=(640, 480))).chunk
    (message,) = asked
    assert message["prompt"] == "stay" and set(message) == {
        "prompt", "observation/exterior_image_1_left", "observation/wrist_image_left", "observation/joint_position",
        "observation/gripper_position",
    }  # fmt: skip
    assert message["observation/wrist_image_left"].shape == (224, 224, 3)
    assert np.allclose(message["observation/joint_position"], 0.01 * np.arange(1, 8))
    assert np.allclose(message["observation/gripper_position"], [0.0]), "0.21 m is wider than open"
    assert (chunk.dt_s, chunk.data.shape, chunk.stamp_ns) == (0.05, (8, 7), STAMP_NS)
    assert np.allclose(chunk.data[:, :6], 0.25) and not chunk.data[:, 6].any(), "0.25 is an open gripper"


def test_every_key_can_be_chosen():
    asked = []

    def answer(message):
        asked.append(unpack(message))
        return pack({"rows": np.tile(np.array([9.0, *np.arange(6), 0.7]), (3, 1))})

    options = {
        "channels": ["skip", *CHANNELS], "cameras": {"top": "front"}, "image": {"width": 96, "height": 96}, "prompt": "task",
        "state": {"pose": list(TCP), "hand": ["gripper.closed", "gripper.width"]}, "reply": "rows",
    }  # fmt: skip
    with foreign(answer) as port:
        remote = client(port, **options)
        chunk = remote.infer(observation()).chunk
    (message,) = asked
    assert set(message) == {"task", "top", "pose", "hand"} and message["top"].shape == (96, 96, 3) and message["pose"].shape == (6,)
    assert remote.spec.cameras == ("front",) and remote.spec.state == (*TCP, "gripper.width")
    assert np.allclose(chunk.data, np.tile([*np.arange(6), 1.0], (3, 1)))


def test_relative_rows_are_anchored_at_the_observation():
    seen = observation()
    pose = seen.proprioception.select(TCP)
    step = np.array([0.01, -0.02, 0.03, 0.0, 0.0, 0.5])
    with foreign(lambda message: pack({"actions": np.append(step, 1.0)[None]})) as port:
        data = client(port, actions="relative").infer(seen).chunk.data[0]
    assert np.allclose(data[:3], pose[:3] + step[:3])
    assert np.allclose(data[3:6], matrix_to_rotvec(rotvec_to_matrix(step[3:]) @ rotvec_to_matrix(pose[3:]))) and data[6] == 1.0
    assert np.allclose(data[3:6], pose[3:], atol=0.6) and not np.allclose(data[3:6], step[3:])


def test_relative_joints():
    joints = [f"{name}.position" for name in PIPER.robots["arm"].joints]
    seen = observation(PIPER)
    moved = {"channels": ["gripper.width", *joints], "actions": "relative", "dt_s": 0.05, "timeout_s": 5}
    embodiment = replace(PIPER, control=replace(PIPER.control, mode="joint_position"))
    with foreign(lambda message: pack({"actions": np.full((2, 7), 0.03, np.float32)})) as port:
        chunk = load_policy(f"openpi://127.0.0.1:{port}", embodiment, moved).infer(seen).chunk
    assert np.allclose(chunk.data[1], [0.03, *(seen.proprioception.select(tuple(joints)) + 0.03)]), "grippers stay absolute"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (pack({"actions": np.full((8, 7), np.nan)}), "56 of 56 actions are NaN"),
        (pack({"actions": np.zeros((8, 6))}), r"shape \[8, 6\], expected \[1 .. 1000, 7\]"),
        (pack({"actions": np.zeros(7)}), r"shape \[7\]"),
        (pack({"actions": np.zeros((0, 7))}), r"shape \[0, 7\]"),
        (pack({"actions": np.zeros((8, 7), bool)}), "an array of bool, expected an array of numbers"),
        (pack({"actions": [[0.0] * 7]}), "the actions are a list"),
        (pack({}), "the actions are a NoneType"),
        (pack([1]), "the server sent a list"),
        (b"\xc1", "nonsense"),
        (b"\x81\xa7actions\x84\xc4\x0b__ndarray__\xc3\xc4\x05dtype\xc4\x02|O\xc4\x05shape\x91\x01\xc4\x04data\xc4\x010", r"dtype b'\|O'"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'state'\n", "the server reports: KeyError: 'state'$"),
    ],
)
def test_a_wrong_answer_is_named_and_the_next_one_is_asked_anew(reply, expected):
    replies = [reply, rows()]
    with foreign(lambda message: replies.pop(0)) as port:
        remote = client(port)
        with pytest.raises(PolicyError, match=expected):
            remote.infer(observation())
        assert remote.infer(observation()).chunk.data.shape == (8, 7)


def test_a_slow_server_is_given_up_and_its_late_answer_never_taken():
    replies = [None, rows(0.5)]
    with foreign(lambda message: replies.pop(0)) as port:
        remote = client(port, timeout_s=0.05)
        with pytest.raises(PolicyError, match=r"no answer within 0\.05 s") as error:
            remote.infer(observation())
        assert error.value.reason == "server"
        assert remote.infer(observation()).chunk.data[0, 0] == 0.5


def test_a_server_that_never_answers_the_handshake():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        remote = client(listener.getsockname()[1], timeout_s=0.05)
        with pytest.raises(PolicyError, match=r"no answer within 0\.05 s"):
            remote.infer(observation())


def test_a_server_that_stops_reading():
    """A process that was suspended: its window fills, and sending must not wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            protocol = ServerProtocol()
            protocol.receive_data(connection.recv(4096))
            (request,) = protocol.events_received()
            protocol.send_response(protocol.accept(request))
            protocol.send_binary(pack({}))
            connection.sendall(b"".join(protocol.data_to_send()))
            kept.append(connection)

        kept: list[socket.socket] = []
        threading.Thread(target=greet, daemon=True).start()
        remote = client(listener.getsockname()[1], timeout_s=0.2, image="full")
        with pytest.raises(PolicyError, match=r"no connection|did not read"):
            remote.infer(observation(size=(4000, 3000)))
        kept[0].close()


def test_a_server_that_goes_and_comes_back():
    with foreign(lambda message: rows()) as port:
        remote = client(port)
        remote.infer(observation())
    with pytest.raises(PolicyError, match="no connection"):
        remote.infer(observation())
    with pytest.raises(PolicyError, match="no connection"):
        remote.infer(observation())


def test_a_server_that_hangs_up_is_asked_again():
    replies = [rows(), rows()]

    def answer(message):
        if len(replies) == 1:
            replies.append(rows())
            raise ConnectionResetError("the process dies")
        return replies.pop(0)

    with foreign(answer) as port:
        remote = client(port)
        remote.infer(observation())
        with pytest.raises(PolicyError, match="no connection"):
            remote.infer(observation())
        assert remote.infer(observation()).chunk.data.shape == (8, 7)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chanels": []}, "policy.options.chanels: openpi has no such option; did you mean 'channels'"),
        ({"actions": "delta"}, "policy.options.actions = 'delta'; say what the rows are: absolute or relative"),
        ({"channels": "tcp.x"}, "policy.options.channels = 'tcp.x', expected a list of names"),
        ({"channels": ["tcp.x", "tcp.y"]}, "policy.options.channels: .* is missing"),
        ({"channels": ["fr3_joint1.position"]}, "policy.options.channels are joint_position, but embodiment franka is driven by tcp_pose"),
        ({"channels": [*TCP, *TCP]}, "named twice"),
        ({"cameras": {"a": "frnt"}}, "policy.options.cameras.a: no camera 'frnt'; did you mean 'front'"),
        ({"cameras": ["front"]}, "expected `key of the policy: camera` lines"),
        ({"state": {"a": ["tcp.w"]}}, "policy.options.state.a: franka does not measure 'tcp.w'"),
        ({"state": ["tcp.x"]}, "policy.options.state = "),
        ({"image": {"width": 5}}, "policy.options.image"),
        ({"dt_s": 0}, "policy.options.dt_s = "),
        ({"dt_s": "0.1"}, "policy.options.dt_s = '0.1', expected 0.001 .. 10"),
        ({"timeout_s": -1}, "policy.options.timeout_s = -1"),
    ],
)
def test_options_are_checked_before_anything_runs(change, expected):
    with pytest.raises(PolicyError, match=expected):
        client(9, **change)


@pytest.mark.parametrize("server", ["openpi:", "openpi://", "openpi://localhost", "openpi://localhost:port", "openpi:http://localhost:80"])
def test_addresses_that_are_none(server):
    with pytest.raises(PolicyError, match="expected host:port"):
        load_policy(server, FRANKA, FOREIGN)


def test_without_options_the_server_must_say_what_it_does():
    with pytest.raises(DeviceError, match=r"no connection.*vla serve"):
        load_policy("openpi://127.0.0.1:9", FRANKA)
    told = pack({"name": "droid"})
    with (
        foreign(lambda message: rows(), told) as port,
        pytest.raises(PolicyError, match=r"give policy\.options channels, actions .* and dt_s"),
    ):
        load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
    with served(Echo(PIPER)) as port, pytest.raises(PolicyError, match="drives embodiment 'piper', this rig has 'franka'"):
        load_policy(f"openpi://127.0.0.1:{port}", FRANKA)
    told = {"protocol": "vla_ros/1", "system": "x", "embodiment": "franka", "cameras": [[]], "state": [], "channels": [], "horizon": 1}
    with foreign(lambda message: rows(), pack(told)) as port, pytest.raises(PolicyError, match="metadata lacks reads, dt_s, cameras"):
        load_policy(f"openpi://127.0.0.1:{port}", FRANKA)


def test_a_token_is_sent_and_its_refusal_told():
    with served(Echo(), token="secret") as port:
        load_policy(f"openpi://127.0.0.1:{port}", FRANKA, {"token": "secret"}).close()
        with pytest.raises(DeviceError, match="401"):
            load_policy(f"openpi://127.0.0.1:{port}", FRANKA, {"token": "wrong"})


def test_letterbox_keeps_the_aspect_ratio():
    picture = letterbox(np.full((480, 640, 3), 200, np.uint8), 224, 224)
    assert picture.shape == (224, 224, 3)
    assert (picture[28:196] == 200).all() and not picture[:28].any() and not picture[196:].any()


def test_200_mutated_answers(tmp_path):
    """No crash, no code run, a PolicyError or finite rows for each, and the next good answer is taken."""
    replies = list(mutations(rows(), np.random.default_rng(5), 200, tmp_path / "owned"))
    count = len(replies)
    failed = 0
    with foreign(lambda message: replies.pop(0) if replies else rows()) as port:
        remote = client(port, cameras={}, state={})
        seen = observation()
        for number in range(count):
            try:
                chunk = remote.infer(seen).chunk
            except PolicyError as error:
                failed += 1
                assert str(error).startswith("openpi at ws://127.0.0.1") and len(str(error)) < 1000, number
            else:
                assert chunk.data.shape[1] == 7 and np.isfinite(chunk.data).all()
        assert remote.infer(seen).chunk.data.shape == (8, 7)
    assert failed > 100 and not replies
    assert not (tmp_path / "owned").exists()


def test_a_foreign_openpi_server_drives_our_robot():
    """openpi's own server, in its own environment."""
    python = openpi_python()
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    command = [python, str(ROOT / "benchmarks" / "serve_peer.py"), "serve"]
    with subprocess.Popen(command, env=bare, stdout=subprocess.PIPE, text=True) as server:
        try:
            remote = client(int(server.stdout.readline()), state={"state": list(TCP)}, timeout_s=20)
            seen = observation()
            chunk = _when_up(remote, seen)
            with pytest.raises(PolicyError, match="KeyError: 'state'"):
                client(int(remote.spec.name.rpartition(":")[2]), state={}).infer(seen)
        finally:
            server.terminate()
    assert chunk.data.shape == (50, 7) and np.allclose(chunk.data[0, :6], seen.proprioception.select(TCP))


def _when_up(remote: OpenPi, seen):
    for _ in range(1000):
        try:
            return remote.infer(seen).chunk
        except PolicyError as error:
            if "refused" not in str(error):
                raise
            os.sched_yield()
    raise AssertionError("openpi's server did not start")
