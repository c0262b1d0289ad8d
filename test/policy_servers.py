"""For tests: `vla serve` in a thread, and a foreign openpi server that answers what it is told to."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.types import ActionChunk, Frame, Inference, Observation, PolicySpec, Proprioception
from vla_ros.policies.foreign import measured_channels
from vla_ros.policies.serving.server import PolicyServer, ServeSettings
from vla_ros.policies.serving.wire import pack, unpack

FRANKA = load_embodiment("franka")
TCP = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz")
STAMP_NS = 1_795_000_000_000_000_000


class Echo:
    """A policy that answers with its state, and remembers what it was asked."""

    def __init__(self, embodiment=FRANKA) -> None:
        self.spec = PolicySpec("echo", embodiment.name, ("front", "wrist"), TCP, (*TCP, "gripper.closed"), 4, 0.1)
        self.seen: list[Observation] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def infer(self, observation: Observation) -> Inference:
        self.seen.append(observation)
        if observation.instruction == "fail":
            raise ZeroDivisionError("division by zero in the policy")
        row = np.append(observation.proprioception.select(TCP), 0.0)
        return Inference(ActionChunk(observation.stamp_ns, 0.1, self.spec.channels, np.tile(row, (4, 1)), 0))


def observation(embodiment=FRANKA, instruction: str = "stay", size: tuple[int, int] = (64, 48)) -> Observation:
    """Random pictures, and 0.01, 0.02, ... for all that the robot measures."""
    random = np.random.default_rng(0)
    frames = {name: Frame(STAMP_NS, random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8), 0, name) for name in embodiment.cameras}
    channels = measured_channels(embodiment)
    state = Proprioception(STAMP_NS, channels, 0.01 * np.arange(1, len(channels) + 1))
    return Observation(STAMP_NS, frames, state, instruction)


def message() -> dict:
    """What a client of a served `Echo` sends."""
    seen = observation()
    return {**{name: frame.image for name, frame in seen.frames.items()}, "state": seen.proprioception.select(TCP), "prompt": "stay"}


@contextmanager
def served(policy, port: int = 0, **settings) -> Iterator[int]:
    """Serves `policy` in a thread; gives the port, a free one by default."""
    started, ports, loop = threading.Event(), [], asyncio.new_event_loop()

    def ready(value: int) -> None:
        ports.append(value)
        started.set()

    async def run() -> None:
        await PolicyServer(policy, ServeSettings(port=port, **settings)).run(ready)

    task = loop.create_task(run())

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    yield ports[0]
    assert thread.is_alive(), "the server has ended by itself"
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)
    assert not thread.is_alive()


def dial(port: int, **arguments):
    """A bare connection, its metadata read: (connection, metadata)."""
    connection = connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None, **arguments).__enter__()
    return connection, unpack(connection.recv(timeout=10))


@contextmanager
def foreign(answer: Callable[[object], bytes | str | None], metadata: bytes | None = None) -> Iterator[int]:
    """A server that sends `metadata`, then `answer(message)` to each message; None is no answer. Gives the port."""

    def handle(connection) -> None:
        try:
            connection.send(pack({}) if metadata is None else metadata)
            for received in connection:
                if (reply := answer(received)) is not None:
                    connection.send(reply)
        except ConnectionClosed:
            return

    with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.1) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join(10)


def openpi_python() -> str:
    """The Python of openpi's own environment (its client needs numpy 1): `VLA_OPENPI_PYTHON`, else the one that the benchmarks made; skips
    the test where there is none.
    """
    if python := os.environ.get("VLA_OPENPI_PYTHON"):
        return python
    folder = Path(__file__).parents[1] / ".build" / "benchmarks" / "openpi"
    if not (folder / "ready").exists():
        pytest.skip(f"VLA_OPENPI_PYTHON names no Python with openpi-client, and {folder} is not there: `make bench ARGS=serve` makes it")
    return str(folder / "bin" / "python")
