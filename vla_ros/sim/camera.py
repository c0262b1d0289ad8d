"""A camera of the simulated table: draws what the simulator's mirror says, in this process, at its own rate."""

from __future__ import annotations

import threading
import time

import mujoco

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError, VlaError, did_you_mean
from vla_ros.core.types import Frame
from vla_ros.sim.mirror import MirrorReader, find_mirror
from vla_ros.sim.render import Renderer, compile_scene, intrinsics
from vla_ros.sim.scene import CAMERAS, build_simulator


class MujocoCamera:
    """Implements `core.interfaces.Camera`. Drawing runs in a thread of its own: a GL context belongs to one thread.

    Args:
        name: "front" or "wrist".
        width, height: px; fps: frames per second.
        address: of the simulation, as in the rig; None: the one in this ROS domain.
    """

    def __init__(self, name: str, width: int = 640, height: int = 480, fps: float = 15.0, address: str | None = None) -> None:
        if name not in CAMERAS:
            raise ConfigError(f"camera '{name}' is not in the scene; {did_you_mean(name, CAMERAS)}")
        self.name, self.intrinsics = name, intrinsics(name, width, height)
        self._size, self._period_s, self._address = (width, height), 1.0 / fps, address
        self._new = threading.Condition()
        self._frame: Frame | None = None
        self._fault: VlaError | None = None
        self._running = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts drawing. Raises DeviceError when no simulation runs or nothing can be drawn."""
        if self._thread is not None:
            return
        reader = MirrorReader(find_mirror(self._address))
        reader.read()
        self._frame, self._fault = None, None
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
            self._thread = None

    def _draw(self, reader: MirrorReader) -> None:
        try:
            model = compile_scene(build_simulator(load_embodiment("franka").robots["arm"].home_rad).scene)
            renderer = Renderer(model, *self._size)
        except VlaError as error:
            self._fail(error)
            return
        data = mujoco.MjData(model)
        number, stamp_ns, deadline = 0, 0, time.monotonic()
        try:
            while self._running.is_set():
                snapshot = reader.read()
                if snapshot.stamp_ns != stamp_ns:  # a simulator that stands still gives no frames, as a dead camera would
                    stamp_ns = snapshot.stamp_ns
                    if snapshot.qpos.size != model.nq:
                        raise DeviceError(
                            f"the simulation has another scene ({snapshot.qpos.size} coordinates, here {model.nq}):"
                            " start both from one version of vla_ros"
                        )
                    data.qpos[:] = snapshot.qpos
                    mujoco.mj_kinematics(model, data)
                    mujoco.mj_camlight(model, data)
                    image = renderer.render(data, self.name)
                    with self._new:
                        self._frame = Frame(stamp_ns, image, number, f"{self.name}_color_optical_frame", self.intrinsics)
                        self._new.notify_all()
                    number += 1
                deadline = max(deadline + self._period_s, time.monotonic() - self._period_s)
                time.sleep(max(0.0, deadline - time.monotonic()))
        except VlaError as error:
            self._fail(error)
        finally:
            renderer.close()

    def _fail(self, error: VlaError) -> None:
        with self._new:
            self._fault = error
            self._new.notify_all()
