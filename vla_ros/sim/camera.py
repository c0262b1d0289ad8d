"""A camera of the simulated table: draws what the simulator's mirror says, in this process, at its own rate."""

from __future__ import annotations

import threading
import time

import mujoco

from vla_ros.core.errors import ConfigError, VlaError, did_you_mean
from vla_ros.core.types import Frame
from vla_ros.sim.mirror import MirrorReader, find_mirror
from vla_ros.sim.render import Renderer, intrinsics


class MujocoCamera:
    """Implements `core.interfaces.Camera`. Drawing runs in a thread of its own: a GL context belongs to one thread.

    Args:
        name: of a camera of the scene, e.g. "front", "wrist", "left_wrist".
        width, height: px; fps: frames per second.
        address: of the simulation, as in the rig; None: the one in this ROS domain.
    """

    def __init__(self, name: str, width: int = 640, height: int = 480, fps: float = 15.0, address: str | None = None) -> None:
        self.name = name
        self._size, self._period_s, self._address = (width, height), 1.0 / fps, address
        self._new = threading.Condition()
        self._frame: Frame | None = None
        self._fault: VlaError | None = None
        self._running = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts drawing. Raises DeviceError when no simulation runs, ConfigError when its scene has no such camera."""
        if self._thread is not None:
            return
        reader = MirrorReader(find_mirror(self._address))
        reader.read()
        names = [reader.model.camera(index).name for index in range(reader.model.ncam)]
        if self.name not in names:
            raise ConfigError(f"camera '{self.name}' is not in the scene; {did_you_mean(self.name, names)}")
        self._frame, self._fault, self._number = None, None, 0
        self._running.set()
        self._thread = threading.Thread(target=self._draw, args=(reader,), name=f"camera {self.name}", daemon=True)
        self._thread.start()

    def read(self) -> Frame | None:
        """Returns the newest frame that was not yet returned, or None after one frame period. Raises DeviceError: drawing failed."""
        with self._new:
            self._new.wait_for(lambda: self._frame is not None or self._fault is not None, timeout=self._period_s)
            if self._fault is not None:
                raise self._fault
            frame, self._frame = self._frame, None
            return frame

    def stop(self) -> None:
        """Stops drawing. Idempotent."""
        self._running.clear()
        if self._thread is not None:
            self._thread.join()
            self._thread = self._frame = None

    def _draw(self, reader: MirrorReader) -> None:
        """Until `stop`, one scene after the other: a simulator that was started anew brings its own."""
        try:
            while self._running.is_set():
                self._draw_scene(reader, reader.model)
        except VlaError as error:
            with self._new:
                self._fault = error
                self._new.notify_all()

    def _draw_scene(self, reader: MirrorReader, model: mujoco.MjModel) -> None:
        renderer, data, lens = Renderer(model, *self._size), mujoco.MjData(model), intrinsics(model, self.name, *self._size)
        stamp_ns, deadline = 0, time.monotonic()
        try:
            while self._running.is_set():
                snapshot = reader.read()
                if reader.model is not model:
                    return
                if snapshot.stamp_ns != stamp_ns:  # a simulator that stands still gives no frames, as a dead camera would
                    stamp_ns = snapshot.stamp_ns
                    data.qpos[:] = snapshot.qpos
                    mujoco.mj_kinematics(model, data)
                    mujoco.mj_camlight(model, data)
                    self._show(Frame(stamp_ns, renderer.render(data, self.name), self._number, f"{self.name}_color_optical_frame", lens))
                deadline = max(deadline + self._period_s, time.monotonic() - self._period_s)
                time.sleep(max(0.0, deadline - time.monotonic()))
        finally:
            renderer.close()

    def _show(self, frame: Frame) -> None:
        with self._new:
            self._frame = frame
            self._new.notify_all()
        self._number += 1
