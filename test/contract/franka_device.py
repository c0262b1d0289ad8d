"""The simulated Franka as a box: franky-sim's control box over MuJoCo physics behind a wire with faults.

`python franka_device.py EMBODIMENT ARM OPTIONS_JSON`, otherwise as box.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from box import STEP_S, serve

from vla_ros.cli.processes import die_with_parent
from vla_ros.core.embodiment import load_embodiment

_WIRE = Path(__file__).parents[1] / "franka_wire.py"


class FrankaDevice:
    """The control box listens at an address of its own, the wire at the one that the driver is given."""

    def __init__(self, address: str) -> None:
        from franky_sim import SimulationServer
        from franky_sim.mujoco_simulator import MUJOCO_DEFAULT_KP, MUJOCO_DEFAULT_KV, MujocoSimulator

        simulator = MujocoSimulator(enable_visualization=False)
        stiffness, damping = tuple(2.0 * k for k in MUJOCO_DEFAULT_KP), tuple(0.3 * k for k in MUJOCO_DEFAULT_KV)
        simulator.add_robot(initial_q=load_embodiment("franka").robots["arm"].home_rad, kp=stiffness, kv=damping)
        simulator.init()
        first, second, rest = address.split(".", 2)
        self._address, self._box_address = address, f"{first}.{int(second) + 1}.{rest}"
        self._server = SimulationServer(simulator, hostname_candidates=[self._box_address])
        self._robot = simulator.robots[0]
        self._wire: subprocess.Popen | None = None

    def start(self) -> None:
        self._server.init()
        self._wire = subprocess.Popen(
            [sys.executable, str(_WIRE), self._address, self._box_address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(die_with_parent, 9),
        )
        self._expect("ready")

    def step(self) -> float:
        for _ in range(round(STEP_S / 0.001)):
            self._server.run_once(realtime=False)
        return float(np.linalg.norm(self._robot.inner_state.dq))

    def inject(self, fault: str) -> None:
        self._tell(f"inject {fault}")

    def clear(self) -> None:
        self._tell("clear")

    def close(self) -> None:
        self._wire.kill()
        self._wire.wait()
        self._server.cleanup()

    def _tell(self, line: str) -> None:
        print(line, file=self._wire.stdin, flush=True)
        self._expect("done")

    def _expect(self, answer: str) -> None:
        given = self._wire.stdout.readline().strip()
        if given != answer:
            raise RuntimeError(f"the wire at {self._address}: {given or 'it has ended'}")


if __name__ == "__main__":
    serve(FrankaDevice(json.loads(sys.argv[3])["address"]))
