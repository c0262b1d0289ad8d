"""One camera: images, camera_info, metadata, and whether it is alive."""

from __future__ import annotations

import sys
import threading

from sensor_msgs.msg import CameraInfo, Image

from vla_msgs.msg import FrameMetadata
from vla_ros.cameras import CAMERAS
from vla_ros.core.devices import load_device
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.rig import load_rig
from vla_ros.core.types import Frame
from vla_ros.nodes import images, msgs, qos
from vla_ros.nodes.camera_stream import CameraStream
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
        overridable = qos.overridable()
        self._images = self.create_publisher(Image, "~/color/image_raw", qos.IMAGE, qos_overriding_options=overridable)
        self._infos = self.create_publisher(CameraInfo, "~/color/camera_info", qos.IMAGE, qos_overriding_options=overridable)
        self._metadata = self.create_publisher(FrameMetadata, "~/color/metadata", qos.METADATA)

    def setup(self) -> None:
        rig, name = load_rig(self.rig_name), self.device_name
        if name not in rig.cameras:
            raise ConfigError(f"rig {rig.name} has no camera '{name}'; {did_you_mean(name, rig.cameras)}")
        camera = rig.cameras[name]
        try:
            driver = load_device(CAMERAS, camera.driver)(name, **camera.options)
        except TypeError as error:
            raise ConfigError(f"{rig.path}: cameras.{name}.options of driver '{camera.driver}': {error}") from error
        self._wanted_hz = float(camera.options.get("fps", 0.0))
        self._stream = CameraStream(driver, f"{name}_color_optical_frame", _SILENCE_S, camera.frozen_after_s or None)
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
        rate_hz, frozen_s = stream.rate_hz(now_ns), stream.frozen_s(now_ns)
        values = {"rate_hz": f"{rate_hz:.1f}", "age_s": f"{stream.age_s(now_ns):.3f}", "frames": stream.frames, "restarts": stream.restarts}
        if stream.error:
            return Health(ERROR, f"lost: {stream.error}", values)
        if frozen_s:
            return Health(ERROR, "frozen: identical pictures", values | {"frozen_s": f"{frozen_s:.1f}"})
        if self.is_active and stream.frames > 2 * self._wanted_hz and rate_hz < _SLOW * self._wanted_hz:
            return Health(WARN, f"slow: less than {_SLOW:.0%} of {self._wanted_hz:g} Hz", values)
        return Health(OK, "running" if self.is_active else "inactive", values)

    def _run(self) -> None:
        shown = ""
        try:
            while not self._stopping.is_set():
                frame = self._stream.step(self.steady_ns())
                if frame is not None:
                    self._publish(frame)
                else:
                    self._stopping.wait(_POLL_S)
                if self._stream.error != shown:
                    shown = self._stream.error
                    self.get_logger().error(f"{shown}; restarting it") if shown else self.get_logger().info("running again")
        except Exception as error:
            self._crash = error

    def _publish(self, frame: Frame) -> None:
        self._images.publish(images.image_msg(frame))
        if frame.intrinsics is not None:
            self._infos.publish(msgs.camera_info_msg(frame))
        self._metadata.publish(msgs.metadata_msg(frame))

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash


def main() -> int:
    """Console script `camera_node`."""
    return run(CameraNode)


if __name__ == "__main__":
    sys.exit(main())
