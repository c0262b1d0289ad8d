"""What `vla doctor` checks of the software and the machine. Each function returns a `Check` and never raises."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vla_ros.cli.environment import ros_record

State = Literal["ok", "absent", "advice", "failed"]
SEGMENT_BYTES = 64 * 2**20
DISK_GB = 1.0
PACKAGES = ("numpy", "torch", "mujoco", "franky-control", "franky-sim", "pin", "opencv-python-headless")


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: what was looked at.
        state: "ok", "absent" (an optional device), "advice" (works, could be better) or "failed" (needed).
        value: what was found.
        fix: what to do; empty where nothing is to be done.
    """

    name: str
    state: State
    value: str
    fix: str = ""


def ros() -> Check:
    """rclpy and a middleware load, and they are the ones that `make setup` chose."""
    record = ros_record()
    origin = f"{record.get('distro', os.environ.get('ROS_DISTRO', '?'))} {record.get('kind', 'workspace')}"
    code = "import rclpy; c = rclpy.Context(); rclpy.init(context=c); print(rclpy.__file__, rclpy.get_rmw_implementation_identifier())"
    status, output = run_python(code)
    if status != 0:
        return Check("ROS", "failed", last_line(output), "make setup (or source the ROS that this environment was made for)")
    where, middleware = output.split()[-2:]
    if record.get("kind") == "wheels" and not where.startswith(sys.prefix):
        fix = "run make setup in this shell, or open one where no ROS is sourced"
        return Check("ROS", "failed", f"{where}, but .venv has the wheels", fix)
    if middleware != "rmw_fastrtps_cpp":
        fix = "unset RMW_IMPLEMENTATION: camera images were measured with rmw_fastrtps_cpp and its profile"
        return Check("ROS", "advice", f"{origin}, {middleware}", fix)
    return Check("ROS", "ok", f"{origin}, {middleware}")


def messages() -> Check:
    """vla_msgs imports, and was built from the definitions that the source tree has now."""
    load = "import vla_msgs.msg, vla_msgs.srv, vla_msgs.action; import ament_index_python as index; "
    status, output = run_python(load + "print(index.get_package_share_directory('vla_msgs'))")
    if status != 0:
        return Check("vla_msgs", "failed", last_line(output), "make setup")
    source, built = Path(__file__).resolve().parents[2] / "vla_msgs", Path(last_line(output))
    definitions = [path.relative_to(source) for kind in ("msg", "srv", "action") for path in sorted(source.glob(f"{kind}/*.{kind}"))]
    changed = [path.stem for path in definitions if _content(built / path) != _content(source / path)]
    if changed:
        return Check("vla_msgs", "failed", f"{', '.join(changed)} differ from what was built", "make setup (in a workspace: colcon build)")
    return Check("vla_msgs", "ok", f"{len(definitions)} definitions, up to date" if definitions else str(built))


def dds_profile() -> Check:
    """The Fast DDS profile is set, and its shared-memory segment holds images."""
    path = os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")
    fix = "unset FASTDDS_DEFAULT_PROFILES_FILE to use config/dds/fastdds.xml"
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        return Check("DDS profile", "failed", f"{path or '(not set)'}: {error}", fix)
    sizes = [int(node.text or 0) for node in tree.iter() if node.tag.endswith("segment_size")]
    if max(sizes, default=0) < SEGMENT_BYTES:
        found = f"{path}: segment_size {max(sizes, default=0)}, {SEGMENT_BYTES} needed for camera images"
        return Check("DDS profile", "failed", found, fix)
    return Check("DDS profile", "ok", f"{path}, segment {max(sizes) // 2**20} MiB")


def shared_memory() -> Check:
    """/dev/shm has room for a segment of every process of a rig."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return Check("shared memory", "failed", str(error), "mount /dev/shm; in a container: docker run --shm-size=2g or --ipc=host")
    free_mib = usage.free // 2**20
    needed_mib = 8 * SEGMENT_BYTES // 2**20
    if free_mib < needed_mib:
        fix = f"{needed_mib} MiB needed: docker run --shm-size=2g, or sudo mount -o remount,size=2g /dev/shm"
        return Check("shared memory", "failed", f"{free_mib} MiB free in /dev/shm", fix)
    return Check("shared memory", "ok", f"{free_mib} MiB free in /dev/shm")


def discovery() -> Check:
    """Who can hear this rig."""
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    if reach == "LOCALHOST" or os.environ.get("ROS_LOCALHOST_ONLY") == "1":
        return Check("discovery", "ok", f"this machine only, domain {domain}")
    fix = "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, unless nodes on other machines take part"
    return Check("discovery", "advice", f"{reach}, domain {domain}", fix)


def graphics() -> Check:
    """A first frame comes out as it should. In its own process: a broken driver may crash it or hand out garbage."""
    backend = os.environ.get("MUJOCO_GL", "(unset)")
    status, output = run_python(_FIRST_FRAME, timeout_s=60)
    if status != 0:
        fix = "sudo apt install libegl1 libgl1-mesa-dri; or MUJOCO_GL=osmesa with sudo apt install libosmesa6"
        return Check("graphics", "failed", f"MUJOCO_GL={backend}: {last_line(output)}", fix)
    return Check("graphics", "ok", f"MUJOCO_GL={backend}, {last_line(output)}")


def packages() -> Check:
    """Versions, for a bug report."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            return Check("packages", "failed", f"{name} is not installed", "make setup")
    listed = ", ".join(f"{name} {text}" for name, text in found.items())
    return Check("packages", "ok", f"Python {platform.python_version()}, {listed}")


def franka() -> Check:
    """franky, which speaks to a Franka and to the simulated one."""
    status, output = run_python("import franky; print(franky.Robot.__name__)")
    return Check("franky", "ok", "imports") if status == 0 else Check("franky", "failed", last_line(output), "make setup")


def disk() -> Check:
    """Room for rollouts and recordings in the working directory."""
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free_gb:.0f} GB free at {Path.cwd()}"
    return Check("disk", "ok", found) if free_gb > DISK_GB else Check("disk", "failed", found, "free some disk, or work in another folder")


def cores() -> Check:
    """The simulated rig was measured on two cores."""
    usable = len(os.sched_getaffinity(0))
    if usable < 2:
        return Check("cores", "advice", str(usable), "two are needed for the simulated rig in real time")
    return Check("cores", "ok", str(usable))


_FIRST_FRAME = """
import mujoco, numpy as np, time
began = time.perf_counter()
model = mujoco.MjModel.from_xml_string('<mujoco><visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual><worldbody>'
    '<camera pos="0 0 1"/><geom type="box" size="1 .5 .01" pos="0 .5 0" rgba="1 0 0 1"/>'
    '<geom type="box" size="1 .5 .01" pos="0 -.5 0" rgba="0 0 1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model); mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 120, 160) as renderer:
    renderer.update_scene(data, camera=0); first = renderer.render().copy()
    renderer.update_scene(data, camera=0); second = renderer.render().copy()
top, bottom = first[:50].reshape(-1, 3).mean(0), first[70:].reshape(-1, 3).mean(0)
if not (top[0] > 150 and top[2] < 60 and bottom[2] > 150 and bottom[0] < 60):
    raise SystemExit(f'the first frame is garbage: red half {top.round()}, blue half {bottom.round()}')
if not np.array_equal(first, second):
    raise SystemExit('two frames of one scene differ')
print(f'first frame as it should be, {time.perf_counter() - began:.1f} s')
"""


def run_python(code: str, timeout_s: float = 30) -> tuple[int, str]:
    """Runs code in a Python of its own: what it loads may crash or hang, and must not take the doctor with it."""
    try:
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/")
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {timeout_s:.0f} s"
    return result.returncode, result.stdout if result.returncode == 0 else result.stderr or f"ended with status {result.returncode}"


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
