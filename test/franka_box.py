"""A simulated Franka control box in a process of its own, for tests of the driver: `FrankaBox(address)`.

As a program: `python franka_box.py ADDRESS` prints "ready"; a line "reflex" on its input ends the running motion as a reflex does,
"speed" is answered with the speed of the fastest joint (rad/s).
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time

from vla_ros.core.embodiment import load_embodiment

HOME = load_embodiment("franka").robots["arm"].home_rad


class FrankaBox:
    """Context manager; `kill` and `start` are the unplugged and the restarted control box."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> FrankaBox:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self._process.stdout.readline().strip()
        if answer != "ready":
            raise RuntimeError(f"the simulated control box at {self.address} did not start: {answer!r}")

    def reflex(self) -> None:
        self._process.stdin.write("reflex\n")
        self._process.stdin.flush()

    def speed(self) -> float:
        """The speed of the fastest joint (rad/s) in the simulation itself; 0 when it is killed."""
        if self._process is None:
            return 0.0
        self._process.stdin.write("speed\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _raise_reflex(box) -> None:
    """What a control box answers to its running motion when the arm hits something."""
    from franky_sim.franka_robot_protocol import MoveStatus
    from franky_sim.franka_robot_server import BaseCommand, RobotCommand

    motion = box.current_motion_id
    box.stop_motion(send_preemption_signal=False)
    BaseCommand.send_response(box._tcp_socket, RobotCommand.kMove, motion, MoveStatus.kReflexAborted)
    box.reset_current_motion_id()


def main(address: str) -> None:
    from franky_sim import SimulationServer
    from franky_sim.mujoco_simulator import MUJOCO_DEFAULT_KP, MUJOCO_DEFAULT_KV, MujocoSimulator

    with contextlib.suppress(PermissionError):
        os.nice(-10)  # other tests may keep the machine busy, and this one must keep time
    simulator = MujocoSimulator(enable_visualization=False)
    stiffness, damping = tuple(2.0 * k for k in MUJOCO_DEFAULT_KP), tuple(0.3 * k for k in MUJOCO_DEFAULT_KV)
    simulator.add_robot(initial_q=HOME, kp=stiffness, kv=damping)
    simulator.init()
    with SimulationServer(simulator, hostname_candidates=[address]) as server:
        print("ready", flush=True)
        deadline, step = time.monotonic(), 0
        while True:
            server.run_once(realtime=False)
            step += 1
            if step % 10 == 0 and select.select([sys.stdin], [], [], 0)[0]:
                order = sys.stdin.readline().strip()
                if not order:
                    return
                box = server.robot_servers[0]
                if order == "reflex":
                    _raise_reflex(box)
                else:
                    print(max(abs(speed) for speed in box.robot.inner_state.dq), flush=True)
            deadline = max(deadline + 0.001, time.monotonic() - 0.05)
            time.sleep(max(0.0, deadline - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1])
