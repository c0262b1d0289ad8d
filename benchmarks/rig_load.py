"""A whole rig under load: 3 x 640x480 at 30 Hz into a policy that infers, commands at 50 Hz; frames lost and command ticks late.

The nodes are the suite's own, in processes of their own as `vla up` starts them; only the devices are doubles that cost nothing.
The figures are those that every rollout reports. The floor is a bare thread on 20 ms deadlines in this process, in the same minute.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.doubles import CAMERAS
from vla_ros.cli.processes import full_name
from vla_ros.cli.rollout_client import RolloutClient
from vla_ros.cli.running_rig import OwnDomain, RunningRig
from vla_ros.core.embodiment import config_dir
from vla_ros.core.rig import load_rig, node_specs

DURATION_S = 60.0
PERIOD_S = 0.02


def measure(folder: Path) -> dict[str, float]:
    """Returns frames published and lost, ms of tick lateness (p50, p99, max) and the floor's; logs go into `folder`."""
    path = _write_rig(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    domain = OwnDomain()
    floor = _Floor()
    try:
        with RunningRig(path, folder / "rig.log", domain.id) as running:
            rig = load_rig(str(path))
            with RolloutClient(rig, running.check, domain_id=domain.id) as client:
                client.wait_until_active([full_name(spec) for spec in node_specs(rig)])
                floor.start()
                outcome = client.execute("stay where you are", DURATION_S)
    finally:
        floor.stop()
        domain.close()
    if outcome.outcome != "time_limit":
        raise RuntimeError(f"the rollout ended with {outcome.outcome}: {outcome.reason}; see {folder / 'rig.log'}")
    late, frames = outcome.statistics["tick_late_ms"], outcome.statistics["frames"]
    return {
        "frames_published": sum(camera["published"] for camera in frames.values()),
        "frames_lost": sum(camera["lost"] for camera in frames.values()),
        "inference_p50_ms": outcome.statistics["inference_ms"]["p50"],
        **{f"tick_late_{name}_ms": late[name] for name in ("p50", "p99", "max")},
        "floor_late_p99_ms": floor.p99_ms(),
        "ratio_p99": late["p99"] / floor.p99_ms(),
    }


def _write_rig(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    embodiment = yaml.safe_load((config_dir() / "embodiments" / "franka.yaml").read_text(encoding="utf-8"))
    embodiment["cameras"] = list(CAMERAS)
    embodiment["urdf"] = str(config_dir().parent / embodiment["urdf"])
    (folder / "embodiment.yaml").write_text(yaml.safe_dump(embodiment), encoding="utf-8")
    rig = {
        "embodiment": str(folder / "embodiment.yaml"),
        "robots": {"arm": {"driver": "benchmarks.doubles:StillRobot"}},
        "cameras": {name: {"driver": "benchmarks.doubles:NoiseCamera"} for name in CAMERAS},
        "policy": {"checkpoint": "benchmarks.doubles:BusyPolicy", "inference_hz": 10},
    }
    (folder / "load.yaml").write_text(yaml.safe_dump(rig, sort_keys=False), encoding="utf-8")
    return folder / "load.yaml"


class _Floor(threading.Thread):
    """How late a thread that does nothing else wakes up on this machine, at this moment."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._late_s: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        deadline_s = time.monotonic()
        while not self._ended.is_set():
            deadline_s += PERIOD_S
            time.sleep(max(0.0, deadline_s - time.monotonic()))
            self._late_s.append(time.monotonic() - deadline_s)

    def stop(self) -> None:
        self._ended.set()

    def p99_ms(self) -> float:
        return float(np.percentile(self._late_s, 99) * 1e3)
