"""Any camera that OpenCV opens: V4L2 devices (USB cameras, the colour sensor of a Kinect or a Dabai), network cameras by address."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

# OpenCV reads it when it is loaded: a V4L2 camera that falls silent would otherwise hold the grabbing thread for 10 s
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")

import cv2

from vla_ros.cameras.calibration import load_calibration
from vla_ros.cameras.newest import Newest
from vla_ros.core.errors import ConfigError, DeviceError, did_you_mean
from vla_ros.core.types import Frame, Intrinsics

# what a rig may set -> OpenCV's property; exposure is in the driver's unit (UVC: 0.1 ms)
_CONTROLS = {
    name: getattr(cv2, f"CAP_PROP_{name.upper()}")
    for name in (
        "auto_exposure",
        "exposure",
        "gain",
        "brightness",
        "contrast",
        "saturation",
        "focus",
        "autofocus",
        "auto_wb",
        "wb_temperature",
    )
}
_NETWORK_TIMEOUT_MS = 2000
_OLDEST_BUFFER_NS = 1_000_000_000
_JOIN_S = 2.0


class OpenCVCamera:
    """Implements `core.interfaces.Camera`. A thread of its own grabs, so that the newest frame is there and not the driver's oldest buffer.

    Args:
        name: of the camera in the rig.
        device: number, "/dev/video0", "/dev/v4l/by-id/..." (stays the same when cables move) or the address of a network camera.
        width, height, fps: asked of the camera, px and Hz; another size than this is an error, since the calibration would be wrong.
        fourcc: pixel format on the wire, "MJPG" or "YUYV"; empty: the driver's choice. Above 640x480x30 on USB 2 only MJPG fits.
        controls: auto_exposure (UVC: 1 manual, 3 automatic), exposure, gain, brightness, ... as the driver counts them.
        calibration: YAML file of camera_calibration; empty: no intrinsics, so no camera_info.

    Raises:
        ConfigError: an option has no meaning, or the calibration is for another size.
    """

    def __init__(
        self,
        name: str,
        *,
        device: int | str = 0,
        width: int = 640,
        height: int = 480,
        fps: float = 30.0,
        fourcc: str = "",
        controls: dict[str, float] | None = None,
        calibration: str = "",
    ) -> None:
        for control in controls or {}:
            if control not in _CONTROLS:
                raise ConfigError(f"camera {name}: control '{control}'; {did_you_mean(control, _CONTROLS)}")
        if fourcc and len(fourcc) != 4:
            raise ConfigError(f"camera {name}: fourcc '{fourcc}', expected four letters such as MJPG or YUYV")
        self.name = name
        self._device = f"/dev/video{device}" if isinstance(device, int) else device
        self._size, self._fps, self._fourcc, self._controls = (width, height), fps, fourcc, controls or {}
        self._intrinsics: Intrinsics | None = load_calibration(calibration, width, height) if calibration else None
        self._newest = Newest()
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Opens the device and starts grabbing. Raises DeviceError with the device and the fix."""
        if self._thread is not None:
            return
        capture = self._open()
        self._newest, self._ending = Newest(), threading.Event()
        work = (capture, self._newest, self._ending)
        self._thread = threading.Thread(target=self._grab, args=work, name=f"camera {self.name}", daemon=True)
        self._thread.start()

    def read(self) -> Frame | None:
        """Returns the newest frame that was not yet returned, or None after one frame period. Raises DeviceError: the camera is gone."""
        if self._thread is None:
            raise DeviceError(f"{self._named}: not started", "device")
        return self._newest.take(1 / self._fps)

    def stop(self) -> None:
        """Stops grabbing and closes the device. Idempotent. A thread that the driver holds closes it when the driver lets it go."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending.set()
            thread.join(_JOIN_S)

    @property
    def _named(self) -> str:
        return f"camera {self.name} ({re.sub('//[^/@]*@', '//', self._device)})"  # without the password of a network camera

    @property
    def _is_local(self) -> bool:
        return "://" not in self._device

    def _open(self) -> cv2.VideoCapture:
        if self._is_local:
            self._check_access()
            capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        else:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS]
            capture = cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, limits)
        if not capture.isOpened():
            hint = "does another program use it? (fuser -v)" if self._is_local else "is it on, and is the address right?"
            raise DeviceError(f"{self._named}: cannot be opened; {hint}", "device")
        if self._is_local:
            self._configure(capture)
        found = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if found != self._size:
            capture.release()
            sizes = "x".join(map(str, found)), "x".join(map(str, self._size))
            raise DeviceError(
                f"{self._named}: gives {sizes[0]}, asked for {sizes[1]}; v4l2-ctl --list-formats-ext shows what it has", "device"
            )
        return capture

    def _check_access(self) -> None:
        path = Path(self._device)
        if not path.exists():
            there = ", ".join(str(found) for found in sorted(Path("/dev").glob("video*"))) or "none"
            raise DeviceError(f"{self._named}: there is no such device; there are: {there} (and their names in /dev/v4l/by-id)", "device")
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeviceError(f"{self._named}: no permission; sudo usermod -aG video $USER, then log in again", "device")

    def _configure(self, capture: cv2.VideoCapture) -> None:
        if self._fourcc:  # first: it decides which sizes and rates there are
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._fourcc))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
        capture.set(cv2.CAP_PROP_FPS, self._fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
        for control, value in self._controls.items():
            if not capture.set(_CONTROLS[control], value):
                capture.release()
                raise DeviceError(f"{self._named}: refuses {control} = {value:g}; v4l2-ctl --list-ctrls shows what it takes", "device")

    def _grab(self, capture: cv2.VideoCapture, newest: Newest, ending: threading.Event) -> None:
        number = 0
        while not ending.is_set():
            if not capture.grab():
                gone = self._is_local and not Path(self._device).exists()
                newest.fail(DeviceError(f"{self._named}: {'unplugged' if gone else 'no more frames'}", "device"))
                break
            stamp_ns = self._stamp_ns(capture)
            found, image = capture.retrieve()
            if not found:  # a JPEG that was cut on the wire: the next one may be whole
                continue
            rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
            newest.put(Frame(stamp_ns, rgb, number, f"{self.name}_color_optical_frame", self._intrinsics))
            number += 1
        capture.release()

    def _stamp_ns(self, capture: cv2.VideoCapture) -> int:
        """Capture time: V4L2 stamps buffers with the monotonic clock, which OpenCV hands on in ms; else the time of arrival."""
        arrival_ns = time.time_ns()
        if not self._is_local:
            return arrival_ns
        age_ns = time.monotonic_ns() - round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        return arrival_ns - age_ns if 0 <= age_ns < _OLDEST_BUFFER_NS else arrival_ns
