"""One camera: images, camera_info, metadata, and whether it is alive."""

from __future__ import annotations

import sys
import threading

from vla_ros.cameras import CAMERAS
from vla_ros.core.devices import load_device
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.rig import load_rig
from vla_ros.nodes.camera_stream import CameraStream
from vla_ros.nodes.camera_topics import CameraTopics
from vla_ros.nodes.lifecycle import ERROR, OK, WARN, Health, VlaNode, run

_POLL_S = 0.003
_SILENCE_S = 2.0
_SLOW = 0.8  # below this share of the wanted rate the camera is slow


class CameraNode(VlaNode):
    """Reads its camera in a thread of its own and publishes from there: the executor never waits for a picture."""

    def __init__(self, **kwargs) -> None:
        super().__init__("camera", **kwargs)
        self._stream: CameraStream | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        jpeg_quality = self.parameter("jpeg_quality", 90, "of ~/color/image_raw/compressed", low=1, high=100)
        self._topics = CameraTopics(self, jpeg_quality)

    def setup(self) -> None:
        rig, name = load_rig(self.rig_name), self.device_name
        if name not in rig.cameras:
            raise ConfigError(f"rig {rig.name} has no camera '{name}'; {did_you_mean(name, rig.cameras)}")
        camera = rig.cameras[name]
        try:
            driver = load_device(CAMERAS, camera.driver)(name, **camera.options)
        except TypeError as error:
            raise ConfigError(f"{rig.path}: cameras.{name}.options of driver '{camera.driver}': {error}") from error
        self._wanted_hz = float(camera.options.get("fps") or 0.0)
        period_s = 1 / self._wanted_hz if self._wanted_hz else 0.0
        self._stream = CameraStream(driver, f"{name}_color_optical_frame", _SILENCE_S, camera.frozen_after_s or None, period_s=period_s)
        self._stream.start(self.steady_ns())

    def engage(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self.device_name, daemon=True)
        self._thread.start()
        self._watch = self.create_timer(0.1, self._raise_crash, clock=self.steady_clock)

    def disengage(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.destroy_timer(self._watch)

    def teardown(self) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream = None

    def diagnose(self) -> Health:
        now_ns, stream = self.steady_ns(), self._stream
        rate_hz, counts = stream.rate_hz(now_ns), {key: getattr(stream, key) for key in ("frames", "refused", "restarts")}
        values = {"rate_hz": f"{rate_hz:.1f}", "age_s": f"{stream.age_s(now_ns):.3f}", "delay_s": f"{stream.delay_s:.3f}", **counts}
        if not self.is_active:
            return Health(OK, "inactive", values)
        if trouble := stream.trouble(now_ns):
            return Health(ERROR, trouble, values | {"frozen_s": f"{stream.frozen_s():.1f}"})
        if not stream.frames:
            return Health(WARN, "starting: no frame yet", values)
        if stream.frames > 2 * self._wanted_hz and rate_hz < _SLOW * self._wanted_hz:
            return Health(WARN, f"slow: less than {_SLOW:.0%} of {self._wanted_hz:g} Hz", values)
        return Health(OK, "running", values)

    def _run(self) -> None:
        shown = ""
        try:
            while not self._stopping.is_set():
                frame = self._stream.step(self.steady_ns(), self.now_ns)
                if frame is not None:
                    self._topics.publish(frame)
                else:
                    self._stopping.wait(_POLL_S)
                if self._stream.error != shown:
                    shown = self._stream.error
                    self.get_logger().error(shown) if shown else self.get_logger().info("running again")
        except Exception as error:
            self._crash = error

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash


def main() -> int:
    """Console script `camera_node`."""
    return run(CameraNode)


if __name__ == "__main__":
    sys.exit(main())
