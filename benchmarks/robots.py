"""Each arm's robot node as a process of its own on the arm's real protocol, driven as a policy drives it: joint targets at the rig's rate.

Measures the node's share of a core at 100 Hz (holding, and following a sine of 0.4 Hz and 0.2 rad on all joints), ms from publishing a step
of 0.03 rad to the first motion of the arm by its device's own log, and how far the arm is from the sine, from the first command on.
For PiPer also what the vendor's SDK takes when all it does is read the bus. Devices: firmware over an arm without physics; Franka: MuJoCo.

  python benchmarks/robots.py --robots piper,kinova     these two, as Markdown
  python benchmarks/run.py robots --json figures.json   all of them, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ROBOTS = ("franka", "kinova", "piper", "viperx", "ros2_control")
CORE_SHARE_MAX, LIMITED = 0.25, ("core_share_holding", "core_share_following")
SINE_HZ, SINE_RAD, SINE_S = 0.4, 0.2, 10.0
HOLD_S, REST_S, SDK_S = 2.0, 1.0, 3.0
STEPS, STEP_RAD, STEP_PERIOD_S = 20, 0.03, 0.45
MOVED_RAD = 2e-4  # the first command of a step moves the arm by several mrad
LAGS_S = np.arange(0.0, 0.5, 0.001)


def measure(folder: Path, robots: tuple[str, ...] = ROBOTS) -> dict[str, float]:
    """Returns the figures of all `robots`, each under its robot's name; logs go into `folder`."""
    return {f"{robot}_{name}": value for robot in robots for name, value in _measure(robot, folder / robot).items()}


def _measure(driver: str, folder: Path) -> dict[str, float]:
    """core_share_*: of one core; motion_*, lag_*: ms; error_*: mrad; load_of_others: the machine's before it began."""
    folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with _bench(driver, folder) as (bench, record, options):
        arm = _Arm(bench)
        with _CoreShare(bench._node.pid) as holding:
            time.sleep(HOLD_S)
        arm.take()
        with _CoreShare(bench._node.pid) as following:
            begun_ns, states_hz = arm.follow_sine()
        arm.stand(REST_S)
        steps = arm.steps()
        bench.box.clear()  # completes the record
        if bench.client.status.state != bench.client.status.STATE_FOLLOWING:
            raise RuntimeError(f"{driver} has not followed to the end: {bench.client.status}")
        bench.kill_node()
        sdk = {"core_share_sdk": _sdk_share(options["can"])} if driver == "piper" else {}
    motion = np.fromfile(record).reshape(-1, 1 + len(arm.home))
    delays_ms = [_first_motion_ms(motion, *step) for step in steps]
    return {
        "core_share_holding": holding.share,
        "core_share_following": following.share,
        **sdk,
        "states_hz": states_hz,
        **{f"motion_p{q}_ms": float(np.percentile(delays_ms, q)) for q in (50, 99)},
        **_tracking(motion, arm.home, begun_ns),
        "load_of_others": load,
    }


@contextmanager
def _bench(driver: str, folder: Path):
    """Yields the bench of the contract tests with a device that records, the record's file and the driver's options."""
    for path in (ROOT / "test", ROOT / "test" / "contract"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    from bench import Bench
    from box import Box
    from counterparts import COUNTERPARTS

    counterpart, record, bench = COUNTERPARTS[driver], folder / "motion.bin", Bench(driver, folder)
    options = counterpart.filled(counterpart.options, bench._domain.address, folder)
    command = [sys.executable, str(Path(__file__).with_name("robot_device.py")), str(record), counterpart.device]
    bench.box = Box([*command, counterpart.embodiment, counterpart.arm, json.dumps(options)], bench._environment)
    with bench:
        yield bench, record, options


class _Arm:
    """Streams joint positions to the robot node, as a policy node does."""

    def __init__(self, bench) -> None:
        from vla_ros.core.rig import load_rig

        self._client, robot = bench.client, bench.robot
        self._period_s = 1.0 / load_rig(str(bench.rig)).embodiment.control.rate_hz
        self._channels = tuple(f"{joint}.position" for joint in robot.joints)
        self.home = np.array(robot.home_rad)

    def take(self) -> None:
        """Makes the stream the node's source."""
        answer = self._client.call("set_source", source="policy")
        if not answer.success:
            raise RuntimeError(f"set_source: {answer.message}")

    def follow_sine(self) -> tuple[int, float]:
        """Returns when it began (ns since the epoch) and how many joint states came a second meanwhile."""
        heard, begun_s, begun_ns = len(self._client.joints), time.monotonic(), time.time_ns()
        self._stream(SINE_S, lambda: self.home + sine((time.time_ns() - begun_ns) * 1e-9))
        return begun_ns, (len(self._client.joints) - heard) / (time.monotonic() - begun_s)

    def stand(self, seconds: float) -> None:
        self._stream(seconds, lambda: self.home)

    def steps(self) -> list[tuple[int, int]]:
        """Steps there and back, each at a moment of its own within the device's cycles; returns (ns since the epoch, direction) of each."""
        published = []
        for number in range(STEPS):
            time.sleep(random.uniform(0.0, self._period_s))
            there = number % 2 == 0
            published.append((time.time_ns(), 1 if there else -1))
            target = self.home + (STEP_RAD if there else 0.0)
            self._stream(STEP_PERIOD_S, lambda target=target: target)
        return published

    def _stream(self, seconds: float, target) -> None:
        begun_s = deadline_s = time.monotonic()
        while deadline_s < begun_s + seconds:
            self._client.send(target(), channels=self._channels)
            deadline_s += self._period_s
            time.sleep(max(0.0, deadline_s - time.monotonic()))


def sine(elapsed_s: np.ndarray | float) -> np.ndarray | float:
    """Displacement (rad) from home; 0 before it begins."""
    return SINE_RAD * np.sin(2 * np.pi * SINE_HZ * np.maximum(elapsed_s, 0.0))


class _CoreShare:
    """Context manager: `share` is the part of one core that a process took meanwhile, all its threads together."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self.share = float("nan")

    def __enter__(self) -> _CoreShare:
        self._begun_s, self._used_s = time.monotonic(), self._cpu_s()
        return self

    def __exit__(self, *_) -> None:
        self.share = (self._cpu_s() - self._used_s) / (time.monotonic() - self._begun_s)

    def _cpu_s(self) -> float:
        fields = self._stat.read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sdk_share(channel: str) -> float:
    """The share of a core of a process that does nothing but let piper_sdk read the bus."""
    command = [sys.executable, str(Path(__file__).resolve()), "--sdk", channel]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"piper_sdk on {channel} did not start")
        with _CoreShare(process.pid) as used:
            time.sleep(SDK_S)
    finally:
        process.kill()
        process.communicate()
    return used.share


def _run_sdk(channel: str) -> None:
    """The SDK with its own threads, on the driver's adapter for slcan: python-can's would read the line byte by byte."""
    from vla_ros.robots.piper_can import BITRATE, C_PiperInterface_V2, StreamSlcan

    interface = C_PiperInterface_V2(channel, judge_flag=False, can_auto_init=False)
    interface.CreateCanBus(channel, bustype="virtual", expected_bitrate=BITRATE, judge_flag=False)
    port = interface.GetCanBus()
    port.Close()
    port.recv_bus = port.send_bus = StreamSlcan(channel)
    interface.ConnectPort(piper_init=False)
    deadline_s = time.monotonic() + 5.0
    while not interface.GetArmJointMsgs().Hz:
        if time.monotonic() > deadline_s:
            raise RuntimeError("the SDK has read no joint positions within 5 s")
        time.sleep(0.05)
    print("ready", flush=True)
    time.sleep(60.0)


def _first_motion_ms(motion: np.ndarray, published_ns: int, direction: int) -> float:
    """ms until a joint has moved in the direction of the step; what is left of the step before goes the other way."""
    first = int(np.searchsorted(motion[:, 0], published_ns))
    moved = (direction * (motion[first:, 1:] - motion[first - 1, 1:])).max(axis=1) > MOVED_RAD
    if not moved.any():
        raise RuntimeError("a step was not followed by any motion")
    return float((motion[first + moved.argmax(), 0] - published_ns) * 1e-6)


def _tracking(motion: np.ndarray, home: np.ndarray, begun_ns: int) -> dict[str, float]:
    """rms over all joints, worst joint at its worst moment, and the lag at which sine and motion correlate best."""
    elapsed_s = (motion[:, 0] - begun_ns) * 1e-9
    within = (elapsed_s >= 0.0) & (elapsed_s <= SINE_S)
    elapsed_s, moved = elapsed_s[within], motion[within, 1:] - home
    error = moved - sine(elapsed_s)[:, None]
    mean = moved.mean(axis=1)
    lag_s = LAGS_S[int(np.argmax([np.corrcoef(mean, sine(elapsed_s - lag_s))[0, 1] for lag_s in LAGS_S]))]
    return {
        "error_rms_mrad": float(np.sqrt((error**2).mean()) * 1e3),
        "error_max_mrad": float(np.abs(error).max() * 1e3),
        "lag_ms": float(lag_s * 1e3),
    }


def rows(figures: dict[str, float]) -> str:
    """One Markdown row a figure, with its limit where it has one."""
    lines = []
    for name, value in figures.items():
        met = "yes" if value <= CORE_SHARE_MAX else "**no**"
        limit = f"{CORE_SHARE_MAX} | {met}" if name.endswith(LIMITED) else " | "
        lines.append(f"| {name} | {value:.3g} | {limit} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", default=",".join(ROBOTS), help="which, separated by commas (default: all): %(default)s")
    parser.add_argument("--sdk", metavar="CHANNEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.sdk:
        _run_sdk(arguments.sdk)
        return
    robots = tuple(arguments.robots.split(","))
    if unknown := set(robots) - set(ROBOTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(ROBOTS)}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    print("| figure | measured | limit | met |\n|---|---|---|---|")
    for robot in robots:
        print(rows(measure(ROOT / ".build" / "benchmarks" / "robots", (robot,))), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
