"""The table in real time behind the Franka's own network protocol: franky connects to it as to a control box."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

import mujoco
import numpy as np

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError, did_you_mean
from vla_ros.sim.judge import Judge, Outcome
from vla_ros.sim.mirror import MirrorWriter, mirror_path
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.scene import build_simulator
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import OBJECTS, parse_task, task_of_seed

STEP_S = 0.001
MIRROR_STEPS = 8  # 125 Hz: cameras at 30 Hz see states at most 8 ms old
JUDGE_STEPS = 20
LOG_STEPS = 10
LOG_S = 60.0
CLOCK_STEPS = 1000
_LATE_S = 0.05  # farther behind than this the clock gives way: the machine was busy, and a burst of steps would only jerk the arm
_OPEN_M = 0.08
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TabletopServer:
    """Runs the scene in a thread of its own at 1 kHz. Its methods may be called from any other thread.

    Args:
        address: where the control box listens (ports 1337 and 1338), one of this machine's loopback addresses.
        seed: of the first placement.
        domain: ROS domain that names the mirror; that of the environment by default.
    """

    def __init__(self, address: str = "127.0.0.1", seed: int = 0, domain: int | None = None) -> None:
        self.address = address
        self._seed, self._domain = seed, domain
        self._home = np.array(load_embodiment("franka").robots["arm"].home_rad)
        self._requests: deque[tuple[Callable[[], object], Future]] = deque()
        self._motion: deque[tuple[int, float, float]] = deque(maxlen=round(LOG_S / STEP_S / LOG_STEPS))
        self._clock: deque[tuple[float, int]] = deque(maxlen=6)
        self._running = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def start(self) -> None:
        """Compiles the scene, opens the ports, places everything by the seed and lets time run.

        Raises:
            DeviceError: the address is taken or not of this machine.
        """
        from franky_sim import SimulationServer

        self._simulator = build_simulator(tuple(self._home))
        self._simulator.init()
        self._server = SimulationServer(self._simulator, hostname_candidates=[self.address])
        try:
            self._server.init()
        except OSError as error:
            self._server.cleanup()
            raise DeviceError(
                f"the simulated control box cannot listen on {self.address}, ports 1337 and 1338 ({error}):"
                " is another simulation running there? change simulation.address in the rig"
            ) from error
        self._robot = self._simulator.robots[0]
        self._model, self._data = self._simulator.model, self._simulator.data
        self._scene = SceneState(self._model)
        self._mirror = MirrorWriter(mirror_path(self.address, self._domain), self._model.nq)
        self._step = 0
        self._place(self._seed, task_of_seed(self._seed).text)
        self._clock.append((time.monotonic(), self._step))
        self._running.set()
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._thread.start()

    def reset(self, seed: int, task: str = "") -> str:
        """Places everything by `seed`, the arm at home, and judges `task` from now on (drawn from the seed when empty); returns it.

        Raises:
            ConfigError: not a task of this table. DeviceError: the simulation is not running.
        """
        text = parse_task(task).text if task else task_of_seed(seed).text
        return self._between_steps(lambda: self._place(seed, text))

    def move_object(self, name: str, dx_m: float, dy_m: float) -> str:
        """Shifts an object along the table ("" is the block that the task names); returns its name. Raises ConfigError."""
        name = name or self.task_block
        if name not in OBJECTS:
            raise ConfigError(f"object '{name}' is not on the table; {did_you_mean(name, OBJECTS)}")
        return self._between_steps(lambda: self._shift(name, dx_m, dy_m))

    def judge(self) -> Outcome:
        """How the task stands, at most 20 ms old. Raises DeviceError when the simulation has died."""
        self._check()
        return self._judge.outcome

    def objects(self) -> dict[str, np.ndarray]:
        """Positions [3] m in `base_link` of blocks (centre), plate and bowl (foot)."""
        return self._between_steps(lambda: self._scene.world(self._data).position)

    def motion_log(self) -> np.ndarray:
        """What the arm did in the last minute, a row every 10 ms.

        Returns:
            [N, 3]: stamp (ns since the epoch), commanded and measured joint speed (norm, rad/s).
        """
        return self._between_steps(lambda: np.array(self._motion, dtype=np.float64).reshape(-1, 3))

    @property
    def task(self) -> str:
        """The canonical task that is judged."""
        return self._judge.task.text

    @property
    def task_block(self) -> str:
        """The block that the task moves."""
        return self._judge.task.block

    @property
    def real_time_factor(self) -> float:
        """Simulated over real time, in the last seconds."""
        began_s, began = self._clock[0]
        return (self._step - began) * STEP_S / max(time.monotonic() - began_s, 1e-9)

    def close(self) -> None:
        """Ends the thread, closes the ports and removes the mirror. Idempotent."""
        self._running.clear()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        for robot in self._server.robot_servers:
            robot.gripper_server.reset_state()
            robot.reset_state()
        self._server.cleanup()
        self._mirror.close()

    def _run(self) -> None:
        """Steps on absolute deadlines, so that a late step is made up for by the next."""
        with contextlib.suppress(PermissionError):  # as root: this thread keeps real time on a busy machine
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        deadline = time.monotonic()
        try:
            while self._running.is_set():
                while self._requests:
                    _answer(*self._requests.popleft())
                self._server.run_once(realtime=False)
                self._after_step()
                deadline += STEP_S
                ahead = deadline - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
                elif ahead < -_LATE_S:
                    deadline = time.monotonic()
        except BaseException as error:  # whatever it was, callers must hear of it
            _log.exception("the simulation stopped")
            self._fault = error
        while self._requests:
            self._requests.popleft()[1].set_exception(DeviceError("the simulation stopped"))

    def _after_step(self) -> None:
        self._step += 1
        step = self._step
        if step % MIRROR_STEPS == 0:
            self._mirror.write(self._data.qpos, self._data.time, time.time_ns())
        if step % LOG_STEPS == 0:
            speed = float(np.linalg.norm(self._data.qvel[self._scene.arm_dof]))
            self._motion.append((time.time_ns(), float(np.linalg.norm(self._robot.state.dq_d)), speed))
        if step % CLOCK_STEPS == 0:
            self._clock.append((time.monotonic(), step))
        if step % JUDGE_STEPS == 0:
            self._judge.update(self._scene.world(self._data), self._data.time)

    def _place(self, seed: int, text: str) -> str:
        self._scene.write(self._data, draw_placement(seed), self._home, _OPEN_M)
        self._robot.set_hand_goal(_OPEN_M, 0.05, 30.0)
        mujoco.mj_forward(self._model, self._data)
        self._hold_here()
        self._judge = Judge(parse_task(text), self._scene.world(self._data))
        self._judge.update(self._scene.world(self._data), self._data.time)
        self._mirror.write(self._data.qpos, self._data.time, time.time_ns())
        return text

    def _hold_here(self) -> None:
        """An idle control box holds where it last stopped, and would drive the arm back there."""
        box = self._server.robot_servers[0]
        if box.current_motion_id == 0:
            self._robot.joint_position_control(self._home)
            self._simulator.step()
            box.stop_motion()

    def _shift(self, name: str, dx_m: float, dy_m: float) -> str:
        self._scene.shift(self._data, name, dx_m, dy_m)
        mujoco.mj_forward(self._model, self._data)
        self._judge.excuse(name, dx_m, dy_m)
        return name

    def _between_steps(self, work: Callable[[], Result]) -> Result:
        self._check()
        future: Future = Future()
        self._requests.append((work, future))
        try:
            return future.result(timeout=5.0)
        except FutureTimeout:  # another class than the built-in one before Python 3.11
            self._check()
            raise DeviceError("the simulation did not answer within 5 s: the machine is overloaded") from None

    def _check(self) -> None:
        if self._fault is not None:
            raise DeviceError(f"the simulation died: {self._fault!r}") from self._fault
        if not self._running.is_set():
            raise DeviceError("the simulation is not running: call start()")


def _answer(work: Callable[[], object], future: Future) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # belongs to who asked
        future.set_exception(error)
