"""The table in real time, behind the robots' own protocols: their drivers connect to it as to the control boxes of real arms."""

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

from vla_ros.core.errors import ConfigError, DeviceError, did_you_mean
from vla_ros.core.rig import Rig
from vla_ros.sim.engine import Engine
from vla_ros.sim.judge import Judge, Outcome
from vla_ros.sim.layout import layout_of
from vla_ros.sim.mirror import MirrorWriter, mirror_path
from vla_ros.sim.placement import check_task, draw_placement
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import Task, parse_task, task_of_seed

MIRROR_S = 0.008  # 125 Hz: cameras at 30 Hz see states at most 8 ms old
JUDGE_S = 0.02
LOG_PERIOD_S = 0.01
LOG_S = 60.0
CLOCK_S = 1.0
_LATE_S = 0.05  # farther behind than this the clock gives way: the machine was busy, and a burst of steps would only jerk the arm
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TabletopServer:
    """Runs the scene in a thread of its own. Its methods may be called from any other thread.

    Args:
        rig: a simulated one: its embodiment's table, its robots' firmware, its address and the seed of the first placement.
        domain: ROS domain that names the mirror; that of the environment by default.

    Raises:
        ConfigError: the embodiment has no table.
    """

    def __init__(self, rig: Rig, domain: int | None = None) -> None:
        self.address = rig.simulation.address
        self._seed, self._domain, self._embodiment = rig.simulation.seed, domain, rig.embodiment.name
        self._layout = layout_of(rig.embodiment.name)
        self._home = {name: np.array(robot.home_rad) for name, robot in rig.embodiment.robots.items()}
        self._open = {name: reach.width_max_m for name, reach in self._layout.arms.items()}
        self._engine = _engine(rig)
        self._requests: deque[tuple[Callable[[], object], Future]] = deque()
        self._motion: deque[tuple[int, float, float]] = deque(maxlen=round(LOG_S / LOG_PERIOD_S))
        self._clock: deque[tuple[float, int]] = deque(maxlen=6)
        self._running = threading.Event()
        self._mirror: MirrorWriter | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def start(self) -> None:
        """Compiles the scene, opens the ports, places everything by the seed and lets time run.

        Raises:
            DeviceError: the address is taken or not of this machine.
        """
        self._engine.start()
        self._step = 0
        self._show(drawer=False)
        self._place(self._seed, self._task_of(self._seed))
        self._clock.append((time.monotonic(), self._step))
        self._running.set()
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._thread.start()

    def reset(self, seed: int, task: str = "") -> str:
        """Places everything by `seed`, the arm at home, and judges `task` from now on (drawn from the seed when empty); returns it.

        Raises:
            ConfigError: not a task of this table. DeviceError: the simulation is not running.
        """
        wanted = parse_task(task) if task else self._task_of(seed)
        check_task(wanted, self._layout, self._embodiment)
        return self._between_steps(lambda: self._place(seed, wanted))

    def move_object(self, name: str, dx_m: float, dy_m: float) -> str:
        """Shifts an object along the table ("" is the block that the task names); returns its name. Raises ConfigError."""
        name = name or self.task_block
        if name not in self._scene.objects:
            raise ConfigError(f"object '{name}' is not on the table; {did_you_mean(name, self._scene.objects)}")
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
        """The block that the task moves, the first of several."""
        return self._judge.task.blocks[0]

    @property
    def real_time_factor(self) -> float:
        """Simulated over real time, in the last seconds."""
        began_s, began = self._clock[0]
        return (self._step - began) * self._engine.step_s / max(time.monotonic() - began_s, 1e-9)

    def close(self) -> None:
        """Ends the thread, closes the ports and removes the mirror. Idempotent."""
        self._running.clear()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self._engine.close()
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
                self._engine.step()
                self._after_step()
                deadline += self._engine.step_s
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
        if self._due(MIRROR_S):
            self._mirror.write(self._data.qpos, self._data.time, time.time_ns())
        if self._due(LOG_PERIOD_S):
            speed = float(np.linalg.norm(self._data.qvel[self._arm_dof]))
            self._motion.append((time.time_ns(), self._engine.commanded_rad_s(), speed))
        if self._due(CLOCK_S):
            self._clock.append((time.monotonic(), self._step))
        if self._due(JUDGE_S):
            self._judge.update(self._scene.world(self._data), self._data.time)

    def _due(self, period_s: float) -> bool:
        return self._step % round(period_s / self._engine.step_s) == 0

    def _task_of(self, seed: int) -> Task:
        return task_of_seed(seed, self._layout.drawn)

    def _show(self, drawer: bool) -> None:
        """Goes over to the scene with or without the drawer; who looks at the mirror meets another model there."""
        self._engine.furnish(drawer)
        if self._mirror is not None and self._engine.model is self._model:
            return
        self._model, self._data = self._engine.model, self._engine.data
        self._scene = SceneState(self._model, self._engine.arms)
        self._arm_dof = np.concatenate(list(self._scene.arm_dof.values()))
        self._mirror = MirrorWriter(mirror_path(self.address, self._domain), self._model)

    def _place(self, seed: int, task: Task) -> str:
        self._show(task.drawer)
        self._scene.write(self._data, draw_placement(seed, self._layout, task), self._home, self._open)
        mujoco.mj_forward(self._model, self._data)
        self._engine.rest(self._open)
        self._judge = Judge(task, self._scene.world(self._data))
        self._judge.update(self._scene.world(self._data), self._data.time)
        self._mirror.write(self._data.qpos, self._data.time, time.time_ns())
        return task.text

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


def _engine(rig: Rig) -> Engine:
    """The physics and protocol that the rig's robots need."""
    if rig.embodiment.name == "franka":
        from vla_ros.sim.franky_engine import FrankyEngine

        return FrankyEngine(rig)
    from vla_ros.sim.servo_engine import ServoEngine

    return ServoEngine(rig)


def _answer(work: Callable[[], object], future: Future) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # belongs to who asked
        future.set_exception(error)
