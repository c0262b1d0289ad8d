"""`vla serve`: what a client gets, what is refused, and that nothing a client sends ends the server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest
from policy_servers import STAMP_NS, TCP, Echo, dial, message, openpi_python, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from wire_fuzz import mutations

from vla_ros.core.errors import ConfigError, DataError, DeviceError
from vla_ros.core.types import Inference, SkillPlan
from vla_ros.policies.serving.batching import Batching
from vla_ros.policies.serving.server import PolicyServer, ServeSettings
from vla_ros.policies.serving.wire import pack, unpack

ROOT = Path(__file__).parents[1]


def ask(connection, content) -> dict | str:
    connection.send(content if isinstance(content, bytes | str) else pack(content))
    reply = connection.recv(timeout=10)
    return reply if isinstance(reply, str) else unpack(reply)


def test_metadata_first_then_actions():
    policy = Echo()
    with served(policy) as port:
        connection, told = dial(port)
        with connection:
            reply = ask(connection, {**message(), "stamp_ns": STAMP_NS})
    spec = policy.spec
    assert told == {
        "protocol": "vla_ros/1", "system": "echo", "embodiment": "franka", "cameras": ["front", "wrist"], "state": list(TCP),
        "channels": list(spec.channels), "horizon": 4, "dt_s": 0.1, "reads": ["prefix"],
    }  # fmt: skip
    assert np.array_equal(reply["actions"], np.tile(np.append(message()["state"], 0.0), (4, 1)))
    assert reply["stamp_ns"] == STAMP_NS and reply["server_timing"]["infer_ms"] >= 0
    (seen,) = policy.seen
    assert (seen.stamp_ns, seen.instruction, list(seen.frames)) == (STAMP_NS, "stay", ["front", "wrist"])
    assert np.array_equal(seen.frames["wrist"].image, message()["wrist"])


def test_a_plan_travels():
    class Thinking(Echo):
        def infer(self, observation):
            inference = super().infer(observation)
            return Inference(inference.chunk, SkillPlan(observation.stamp_ns, ("pick", "place"), 1, "place", "step 2/2"))

    with served(Thinking()) as port:
        connection, _ = dial(port)
        with connection:
            assert ask(connection, message())["plan"] == {"task_chain": ["pick", "place"], "step": 1, "skill": "place", "text": "step 2/2"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"front": None}, "the observation lacks front"),
        ({"fornt": 1}, "did you mean 'front'"),
        ({"prompt": 3}, "prompt is a int, expected text"),
        ({"state": np.zeros(5)}, "state has shape [5], expected [6]: tcp.x"),
        ({"state": np.full(6, np.nan)}, "6 of 6 values are NaN"),
        ({"state": [0.0] * 6}, "state is a list, expected an array of 6 numbers"),
        ({"wrist": np.zeros((4, 4, 3), np.float32)}, "wrist is float32 [4, 4, 3], expected an image: uint8"),
        ({"wrist": np.zeros((0, 4, 3), np.uint8)}, "expected an image"),
        ({"stamp_ns": "now"}, "stamp_ns = 'now'"),
        ({"prefix": np.zeros((4, 7))}, "prefix_weights is no array of finite float numbers [P]"),
        ({"prefix": np.full((4, 7), np.nan), "prefix_weights": np.ones(4)}, "prefix is no array of finite float numbers [P, D]"),
        ({"prefix": np.zeros((5, 7)), "prefix_weights": np.ones(5)}, "prefix [5, 7] with 5 prefix_weights, expected up to 4 rows of 7"),
        ({"prefix": np.zeros((3, 7)), "prefix_weights": np.full(3, 2.0)}, "prefix_weights of 2 .. 2, expected 0 .. 1"),
        ({"prompt": "fail"}, "echo: ZeroDivisionError: division by zero in the policy"),
        (b"not msgpack", "are not a msgpack message"),
        ("text", "binary msgpack messages, not text"),
        ([1, 2], "an observation is a mapping, this is a list"),
    ],
)  # fmt: skip
def test_an_error_is_text_and_the_connection_stays(change, expected):
    content = {key: value for key, value in {**message(), **change}.items() if value is not None} if isinstance(change, dict) else change
    with served(Echo()) as port:
        connection, _ = dial(port)
        with connection:
            reply = ask(connection, content)
            assert isinstance(reply, str) and expected in reply and "Traceback" not in reply
            assert ask(connection, message())["actions"].shape == (4, 7)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ({b"dtype": b"|O", b"shape": [1], b"data": b"\0" * 8}, "array of dtype b'|O'"),
        ({b"dtype": b"(1000000,)f8", b"shape": [1], b"data": b""}, "array of dtype"),
        ({b"dtype": b"V8", b"shape": [1], b"data": b"\0" * 8}, "array of dtype b'V8'"),
        ({b"dtype": b"<c8", b"shape": [1], b"data": b"\0" * 8}, "array of dtype b'<c8'"),
        ({b"dtype": b"<f8", b"shape": [2**31 - 1] * 3, b"data": b"\0" * 8}, "the message holds 8 bytes"),
        ({b"dtype": b"<f8", b"shape": [-1], b"data": b"\0" * 8}, "array of shape [-1]"),
        ({b"dtype": b"<f8", b"shape": 1, b"data": b"\0" * 8}, "array of shape 1"),
        ({b"dtype": b"<f8", b"shape": [1]}, "data of type NoneType"),
        ({b"dtype": b"<f2", b"shape": [True], b"data": b"\0\0"}, "array of shape [True]"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(array, expected):
    with pytest.raises(DataError) as error:
        unpack(msgpack.packb({"state": {b"__ndarray__": True, **array}}))
    assert expected in str(error.value)


def test_what_is_packed_comes_back():
    values = {
        "rows": np.arange(6.0).reshape(2, 3), "part": np.arange(16).reshape(4, 4)[::2, ::2], "none": np.zeros((0, 3), np.float32),
        "flag": np.array(True), "one": np.float32(0.5), "big": np.arange(3, dtype=">i4"), "text": "ä", "list": [1, None, 2.5],
    }  # fmt: skip
    back = unpack(pack(values))
    for key, value in values.items():
        assert np.array_equal(back[key], value), key
        assert getattr(back[key], "dtype", None) == getattr(value, "dtype", None)
    for wrong in (np.array([object()]), np.zeros(2, complex), object(), {1, 2}):
        with pytest.raises(DataError):
            pack({"x": wrong})


def test_token_origin_and_health():
    with served(Echo(), token="secret") as port:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus) as refused:
                dial(port, additional_headers=headers)
            assert refused.value.response.status_code == 401
        for scheme in ("Bearer", "Api-Key"):
            dial(port, additional_headers={"Authorization": f"{scheme} secret"})[0].close()
        with pytest.raises(InvalidStatus) as refused:  # a page in a browser on this machine
            dial(port, additional_headers={"Authorization": "Bearer secret"}, origin="http://example.com")
        assert refused.value.response.status_code == 403
        health = http.client.HTTPConnection("127.0.0.1", port)
        health.request("GET", "/healthz")
        assert health.getresponse().read() == b"OK\n"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, "give a --token too"),
        ({"host": "robot.local"}, "give a --token too"),
        ({"clients": 0}, "--clients 0, expected 1 .. 256"),
        ({"batch": 4}, "give as many --clients"),
        ({"max_request_mb": 0}, "--max-request-mb 0"),
        ({"port": 99999}, "--port 99999"),
    ],
)
def test_settings_that_cannot_be(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        ServeSettings(**settings)


def test_a_port_in_use_is_named():
    with served(Echo()) as port, pytest.raises(DeviceError, match=f"127.0.0.1:{port}.*choose another --port"):
        asyncio.run(PolicyServer(Echo(), ServeSettings(port=port)).run())


def test_a_message_over_the_limit_ends_its_connection_only():
    with served(Echo(), max_request_mb=0.05) as port:
        connection, _ = dial(port)
        with pytest.raises(ConnectionClosed) as closed:
            ask(connection, {**message(), "front": np.zeros((200, 200, 3), np.uint8)})
        assert closed.value.rcvd.code == 1009
        connection, _ = dial(port)
        with connection:
            assert "actions" in ask(connection, message())


def test_one_client_has_the_policy_for_itself_and_a_fresh_history():
    policy = Echo()
    with served(policy, slot_wait_s=0.05) as port:
        first, _ = dial(port)
        assert policy.resets == 1
        with pytest.raises(ConnectionClosed) as closed:
            dial(port)
        assert closed.value.rcvd.code == 1013 and "vla serve --clients" in closed.value.rcvd.reason
        first.close()
        second, _ = dial(port)
        with second:
            assert policy.resets == 2 and "actions" in ask(second, message())


def test_a_place_becomes_free_when_its_client_vanishes():
    with served(Echo(), slot_wait_s=10) as port:
        first, _ = dial(port)
        first.socket.shutdown(2)  # no goodbye
        second, _ = dial(port)
        with second:
            assert "actions" in ask(second, message())


def test_waiting_requests_are_answered_together():
    class Together(Echo):
        sizes = ()

        def infer_batch(self, observations):
            self.sizes = (*self.sizes, len(observations))
            return [self.infer(observation) for observation in observations]

    policy = Together()
    with served(policy, clients=3, batch=3, batch_wait_ms=5000) as port:
        connections = [dial(port)[0] for _ in range(3)]
        replies = {}

        def work(number):
            replies[number] = ask(connections[number], {**message(), "state": np.full(6, float(number))})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert policy.sizes == (3,), "one batch of three"
        assert [replies[number]["actions"][0, 0] for number in range(3)] == [0.0, 1.0, 2.0], "each its own answer"
        assert policy.resets == 1, "the others came while the first was there"
        for connection in connections:
            connection.close()


def test_one_bad_observation_does_not_spoil_its_batch():
    class Strict(Echo):
        def infer_batch(self, observations):
            raise ValueError("somewhere in the batch")

    batching = Batching(Strict(), 3)
    observations = [type("Seen", (), {"instruction": text, "stamp_ns": 0, "proprioception": _Six()})() for text in ("a", "fail", "b")]
    results = batching._compute(observations)
    assert [isinstance(result, Exception) for result in results] == [False, True, False]
    batching.close()


class _Six:
    def select(self, names):
        return np.zeros(len(names))


def test_400_mutated_frames(tmp_path):
    """No crash, no code run, an error or an answer for each, and the next good request works."""
    policy = Echo()
    random = np.random.default_rng(4)
    answered = refused = 0
    whole = {**message(), "stamp_ns": STAMP_NS, "prefix": np.zeros((3, 7)), "prefix_weights": np.ones(3)}
    with served(policy, max_request_mb=1) as port:
        connection, _ = dial(port)
        for number, frame in enumerate(mutations(pack(whole), random, 400, tmp_path / "owned")):
            try:
                reply = ask(connection, frame)
            except ConnectionClosed:  # the frame broke a rule of websockets themselves
                connection, _ = dial(port)
                refused += 1
                continue
            if isinstance(reply, str):
                refused += 1
                assert reply.strip() and "Traceback" not in reply and len(reply) < 1000, (number, reply)
            else:
                answered += 1
                assert reply["actions"].shape == (4, 7)
        assert "actions" in ask(connection, message())
        connection.close()
    assert answered + refused == 400 and refused > 200
    assert not (tmp_path / "owned").exists()


def test_openpi_client_drives_it():
    """openpi's own client, in its own environment with its own numpy."""
    python = openpi_python()
    with served(Echo(), token="secret") as port:
        bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
        script = ROOT / "benchmarks" / "serve_peer.py"
        result = subprocess.run([python, str(script), "ask", str(port), "secret"], env=bare, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        told = json.loads(result.stdout)
    assert told["metadata"]["embodiment"] == "franka" and told["metadata"]["channels"][-1] == "gripper.closed"
    assert told["shape"] == [4, 7] and told["first"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0])
    assert "state has shape [5], expected [6]" in told["error"], "an error arrives as openpi-client's RuntimeError"
    assert told["after_error"] == [4, 7], "and the same connection goes on"


def test_the_command_says_what_is_wrong(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "vla_ros.cli", "serve", "dummy_policies:Still"]
    for arguments, expected in (
        ([], "give --embodiment NAME or --rig NAME"),
        (["--embodiment", "franka", "--host", "0.0.0.0"], "give a --token too"),
        (["--embodiment", "franka", "--option", "x"], "expected KEY=VALUE"),
        (["--embodiment", "franka", "--option", "x=1"], "has no such option"),
    ):
        result = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 2 and expected in result.stderr and result.stderr.count("\n") == 1, result.stderr
