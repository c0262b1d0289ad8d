"""Observation (3 x 640x480 RGB + state) -> policy in another process -> chunk: vla_ros over DDS against openpi's websocket.

Both sides carry the same bytes on this machine and answer with a 50 x 7 chunk from a policy that does nothing.
openpi-client pins numpy < 2, so the peer runs in an environment of its own, made on first use.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROUNDS, WARM_UP = 200, 20
PEER = Path(__file__).with_name("openpi_peer.py")
PEER_PACKAGES = ["openpi-client==0.1.2", "openpi-server==0.1.0", "typing_extensions"]  # the last one it forgets to ask for


def measure(folder: Path) -> dict[str, float]:
    """Returns ms and the ratio of medians, ours over openpi's; the peer's environment is made in `folder`."""
    peer_python = _peer_environment(folder / "openpi")
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}  # ours hold another numpy
    # Alternate, so that whatever else the machine does meets both.
    ours, peer = [], []
    for _ in range(2):
        ours += _ours()
        answer = subprocess.run(
            [peer_python, str(PEER), str(ROUNDS), str(WARM_UP)], env=bare, check=True, stdout=subprocess.PIPE, text=True
        )
        peer += json.loads(answer.stdout)
    quantiles = {
        f"{name}_p{q}_ms": float(np.percentile(values, q)) for name, values in (("ours", ours), ("openpi", peer)) for q in (50, 99)
    }
    return {**quantiles, "ratio_p50": quantiles["ours_p50_ms"] / quantiles["openpi_p50_ms"]}


def _peer_environment(folder: Path) -> str:
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"benchmarks: installing {', '.join(PEER_PACKAGES)} into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True, stderr=subprocess.DEVNULL)
        (folder / "ready").touch()
    return str(python)


def _ours() -> list[float]:
    responder = subprocess.Popen([sys.executable, "-m", "benchmarks.round_trip", "respond"], env=os.environ)
    try:
        return _ask()
    finally:
        responder.terminate()
        responder.wait()


def _ask() -> list[float]:
    import rclpy
    from sensor_msgs.msg import Image

    from benchmarks.doubles import CAMERAS, TCP
    from vla_msgs.msg import ActionChunk
    from vla_msgs.msg import Proprioception as ProprioceptionMsg
    from vla_ros.core.types import Frame, Proprioception
    from vla_ros.nodes import msgs, qos
    from vla_ros.nodes.images import image_msg

    rclpy.init()
    node = rclpy.create_node("ask")
    images = {name: node.create_publisher(Image, f"/camera/{name}/color/image_raw", qos.IMAGE) for name in CAMERAS}
    states = node.create_publisher(ProprioceptionMsg, "/proprioception", qos.STATE)
    answers: list[int] = []
    node.create_subscription(ActionChunk, "/policy/chunk", lambda message: answers.append(msgs.chunk_of(message).stamp_ns), qos.CHUNK)
    deadline_s = time.monotonic() + 30.0
    while not all(publisher.get_subscription_count() for publisher in [*images.values(), states]):
        if time.monotonic() > deadline_s:
            raise RuntimeError("the responder did not start within 30 s; run `python -m benchmarks.round_trip respond` to see why")
        rclpy.spin_once(node, timeout_sec=0.05)
    pictures = [np.random.default_rng(i).integers(0, 255, (480, 640, 3), dtype=np.uint8) for i in range(3)]
    taken = []
    while len(taken) < ROUNDS + WARM_UP:
        stamp_ns, start_s = time.time_ns(), time.perf_counter()
        states.publish(msgs.proprioception_msg(Proprioception(stamp_ns, TCP[:6], np.zeros(6)), "bench", {"arm": 0.0}))
        for name, picture in zip(CAMERAS, pictures, strict=True):
            images[name].publish(image_msg(Frame(stamp_ns, picture, len(taken), f"{name}_color_optical_frame")))
        deadline_s = start_s + 1.0
        while stamp_ns not in answers and time.perf_counter() < deadline_s:
            rclpy.spin_once(node, timeout_sec=0.01)
        if stamp_ns in answers:  # an image that got lost (best effort) has no answer; the frame benchmark counts those
            taken.append((time.perf_counter() - start_s) * 1e3)
        answers.clear()
    node.destroy_node()
    rclpy.shutdown()
    return taken[WARM_UP:]


def _respond() -> None:
    """The policy side, with the parts that the policy node uses."""
    import rclpy
    from sensor_msgs.msg import Image

    from benchmarks.doubles import CAMERAS, StillPolicy
    from vla_msgs.msg import ActionChunk
    from vla_msgs.msg import Proprioception as ProprioceptionMsg
    from vla_ros.core.embodiment import load_embodiment
    from vla_ros.core.errors import StaleData
    from vla_ros.core.observation import ObservationBuffer
    from vla_ros.nodes import msgs, qos
    from vla_ros.nodes.images import frame_of

    rclpy.init()
    node = rclpy.create_node("policy")
    policy = StillPolicy(load_embodiment("franka"))
    buffer = ObservationBuffer(CAMERAS, max_age_s=1.0)
    chunks = node.create_publisher(ActionChunk, "/policy/chunk", qos.CHUNK)
    seen: dict[str, int] = {}

    def on_image(name: str, message: Image) -> None:
        frame = frame_of(message)
        buffer.add_frame(name, frame)
        seen[name] = frame.stamp_ns
        if len(seen) == len(CAMERAS) and len(set(seen.values())) == 1:
            try:
                observation = buffer.get(time.time_ns(), "stay")
            except StaleData:
                return
            chunks.publish(msgs.chunk_msg(policy.infer(observation).chunk))

    for name in CAMERAS:
        node.create_subscription(Image, f"/camera/{name}/color/image_raw", lambda message, name=name: on_image(name, message), qos.IMAGE)
    node.create_subscription(
        ProprioceptionMsg, "/proprioception", lambda m: buffer.add_proprioception(msgs.proprioception_of(m)), qos.STATE
    )
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__" and sys.argv[1:] == ["respond"]:
    _respond()
