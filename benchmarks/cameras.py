"""Three RealSense recordings at 640x480x30, colour and depth aligned to it, each through a camera node of its own to one subscriber.

Counts what is lost inside the driver and on the way, the CPU of a camera node, and how soon the end of the stream is told.
`python benchmarks/cameras.py [--seconds 60]` runs it alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
CAMERAS = ("front", "left_wrist", "right_wrist")
SECONDS = 60
PERIOD_NS = 1e9 / 30
_IMPORTS = "import rclpy, vla_msgs.msg, vla_ros.cameras.realsense"


@dataclass
class Heard:
    """What came from one camera; stamps are the captures'."""

    colour_ns: list[int] = field(default_factory=list)
    depth_ns: list[int] = field(default_factory=list)
    published_ns: list[int] = field(default_factory=list)
    end_told_ns: int = 0

    def lost(self) -> dict[str, int]:
        """Frames that should have come between the first and the last: lost in the driver, and on the way, for colour and depth."""
        due = round((self.published_ns[-1] - self.published_ns[0]) / PERIOD_NS) + 1
        published = set(self.published_ns)
        return {
            "driver": due - len(published),
            "colour": len(published - set(self.colour_ns)),
            "depth": len(published - set(self.depth_ns)),
        }


def measure(folder: Path, seconds: int = SECONDS) -> dict[str, float]:
    """Returns frames published and lost, the share of a core per camera node, ms to align, s until the end was told."""
    file = _recording(folder, seconds)
    load, align_ms = os.getloadavg()[0], _align_ms(file)
    with ExitStack() as stack:
        heard, core_share = _play(stack, _write_rig(folder, file), seconds)
    lost = [each.lost() for each in heard.values()]
    return {
        "frames_published": sum(len(each.published_ns) for each in heard.values()),
        **{f"frames_lost_{where}": sum(each[where] for each in lost) for where in ("driver", "colour", "depth")},
        "frames_lost": sum(sum(each.values()) for each in lost),
        "core_share_per_camera": core_share,
        "align_p50_ms": float(np.percentile(align_ms, 50)),
        "align_p99_ms": float(np.percentile(align_ms, 99)),
        "load_of_others": load,
        "end_told_s": max((each.end_told_ns - each.published_ns[-1]) * 1e-9 for each in heard.values()),
    }


def _recording(folder: Path, seconds: int) -> Path:
    sys.path.insert(0, str(ROOT / "test"))
    from realsense_file import record

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{seconds}s.db3"
    if not file.exists():
        record(folder / "part.db3", seconds * 30)
        (folder / "part.db3").rename(file)
    return file


def _align_ms(file: Path) -> list[float]:
    from vla_ros.cameras.realsense import RealSense

    camera, times = RealSense("front", file=str(file)), []
    align = camera._aligned

    def timed(frames: object) -> tuple[np.ndarray, float]:
        started_s = time.perf_counter()
        result = align(frames)
        times.append((time.perf_counter() - started_s) * 1e3)
        return result

    camera._aligned = timed
    camera.start()
    while len(times) < 90:
        camera.read()
    camera.stop()
    return times[5:]


def _write_rig(folder: Path, file: Path) -> Path:
    embodiment = yaml.safe_load((ROOT / "config" / "embodiments" / "franka.yaml").read_text(encoding="utf-8"))
    embodiment["cameras"] = list(CAMERAS)
    embodiment["urdf"] = str(ROOT / embodiment["urdf"])
    (folder / "embodiment.yaml").write_text(yaml.safe_dump(embodiment), encoding="utf-8")
    rig = {
        "embodiment": str(folder / "embodiment.yaml"),
        "robots": {"arm": {"driver": "benchmarks.doubles:StillRobot"}},
        "cameras": {name: {"driver": "realsense", "options": {"file": str(file), "fps": 30}} for name in CAMERAS},
    }
    (folder / "cameras.yaml").write_text(yaml.safe_dump(rig, sort_keys=False), encoding="utf-8")
    return folder / "cameras.yaml"


def _play(stack: ExitStack, rig_path: Path, seconds: int) -> tuple[dict[str, Heard], float]:
    """Runs the camera nodes until all recordings have ended. Returns what was heard and the mean share of a core of a node."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from vla_ros.cli.processes import command_line, die_with_parent, stop_process
    from vla_ros.cli.running_rig import OwnDomain
    from vla_ros.core.rig import load_rig, node_specs

    domain = OwnDomain()
    stack.callback(domain.close)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain.id, signal_handler_options=SignalHandlerOptions.NO)
    stack.callback(rclpy.shutdown, context=context)
    node = rclpy.create_node("counter", context=context)
    stack.callback(node.destroy_node)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard = _subscribe(node)
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)  # warm: three cold imports at once would be the first seconds' load
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain.id)}
    specs = [spec for spec in node_specs(load_rig(str(rig_path)), with_policy=False) if spec.executable == "camera_node"]
    nodes = [subprocess.Popen(command_line(spec), env=environment, preexec_fn=die_with_parent, cwd=ROOT) for spec in specs]
    for process in nodes:
        stack.callback(stop_process, process)
    used: list[tuple[float, float]] = []
    deadline_s = time.monotonic() + seconds + 60
    while not all(each.end_told_ns for each in heard.values()):
        executor.spin_once(timeout_sec=0.1)
        if time.monotonic() > deadline_s or any(process.poll() is not None for process in nodes):
            raise RuntimeError(f"a camera has not ended: { {name: len(each.published_ns) for name, each in heard.items()} } frames")
        steady = all(30 < len(each.published_ns) < seconds * 30 - 30 for each in heard.values())
        if steady:
            used = [*used[:1], (time.monotonic(), sum(_cpu_s(process.pid) for process in nodes))]
    (from_s, from_cpu_s), (to_s, to_cpu_s) = used
    return heard, (to_cpu_s - from_cpu_s) / (to_s - from_s) / len(nodes)


def _subscribe(node) -> dict[str, Heard]:
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import Image

    from vla_msgs.msg import FrameMetadata
    from vla_ros.nodes import images, msgs, qos

    heard = {name: Heard() for name in CAMERAS}

    def on_colour(message: Image, each: Heard) -> None:
        each.colour_ns.append(images.frame_of(message).stamp_ns)

    def on_depth(message: Image, each: Heard) -> None:
        images.depth_of(message)
        each.depth_ns.append(msgs.stamp_ns(message.header.stamp))

    def on_diagnostics(message: DiagnosticArray) -> None:
        each = heard[message.status[0].hardware_id]
        if "has ended" in message.status[0].message and not each.end_told_ns:
            each.end_told_ns = time.time_ns()

    for name, each in heard.items():
        topic = f"/camera/{name}"
        node.create_subscription(Image, f"{topic}/color/image_raw", lambda message, each=each: on_colour(message, each), qos.IMAGE)
        node.create_subscription(
            Image, f"{topic}/aligned_depth_to_color/image_raw", lambda message, each=each: on_depth(message, each), qos.IMAGE
        )
        node.create_subscription(
            FrameMetadata,
            f"{topic}/color/metadata",
            lambda message, each=each: each.published_ns.append(msgs.stamp_ns(message.header.stamp)),
            qos.METADATA,
        )
    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, qos.DIAGNOSTICS)
    return heard


def _cpu_s(pid: int) -> float:
    """User and system time of a process, s."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of the recordings (default %(default)s)")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for key, value in measure(ROOT / ".build" / "benchmarks" / "cameras", parser.parse_args().seconds).items():
        print(f"{key:24} {value:.4g}")
