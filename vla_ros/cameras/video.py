"""A video file as a camera: plays at its own pace, its first picture taken now."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vla_ros.cameras.calibration import load_calibration
from vla_ros.cameras.newest import Newest
from vla_ros.core.errors import DeviceError
from vla_ros.core.types import Frame, Intrinsics

_DEFAULT_FPS = 30.0


class VideoCamera:
    """Implements `core.interfaces.Camera`.

    Args:
        name: of the camera in the rig.
        file: anything that FFmpeg reads.
        fps: Hz at which to play; 0: as the file says.
        repeat: plays the file again and again; else its end is a DeviceError with the reason "ended".
        calibration: YAML file of camera_calibration; empty: no intrinsics, so no camera_info.
    """

    def __init__(self, name: str, *, file: str, fps: float = 0.0, repeat: bool = False, calibration: str = "") -> None:
        self.name = name
        self._file, self._fps, self._repeat, self._calibration = Path(file).expanduser(), fps, repeat, calibration
        self._newest = Newest()
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Opens the file and starts to play from its beginning. Raises DeviceError: no such file, or no video in it."""
        if self._thread is not None:
            return
        with self._open() as container:
            stream = container.streams.video[0]
            self._period_s = 1 / (self._fps or float(stream.average_rate or _DEFAULT_FPS))
            size = stream.width, stream.height
        lens = load_calibration(self._calibration, *size) if self._calibration else None
        self._newest, self._ending = Newest(), threading.Event()
        work = (lens, self._newest, self._ending)
        self._thread = threading.Thread(target=self._play, args=work, name=f"camera {self.name}", daemon=True)
        self._thread.start()

    def read(self) -> Frame | None:
        """Returns the newest frame that was not yet returned, or None after one frame period. Raises DeviceError: ended, or damaged."""
        if self._thread is None:
            raise DeviceError(f"{self._named}: not started", "device")
        return self._newest.take(self._period_s)

    def stop(self) -> None:
        """Stops playing. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ending.set()
            thread.join()

    @property
    def _named(self) -> str:
        return f"camera {self.name} ({self._file})"

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(str(self._file))
        except (av.FFmpegError, OSError) as error:
            raise DeviceError(f"{self._named}: {error.strerror or error}", "device") from error
        if not container.streams.video:
            container.close()
            raise DeviceError(f"{self._named}: no video in it", "device")
        return container

    def _pictures(self) -> Iterator[np.ndarray]:
        with self._open() as container:
            for picture in container.decode(video=0):
                yield picture.to_ndarray(format="rgb24")

    def _play(self, lens: Intrinsics | None, newest: Newest, ending: threading.Event) -> None:
        number, due_s = 0, time.monotonic()
        try:
            while not ending.is_set():
                for image in self._pictures():
                    if ending.wait(max(0.0, due_s - time.monotonic())):
                        return
                    newest.put(Frame(time.time_ns(), image, number, f"{self.name}_color_optical_frame", lens))
                    number, due_s = number + 1, max(due_s, time.monotonic() - self._period_s) + self._period_s
                if not self._repeat or not number:
                    newest.fail(DeviceError(f"{self._named}: the video has ended; `repeat: true` plays it again", "ended"))
                    return
        except av.FFmpegError as error:
            newest.fail(DeviceError(f"{self._named}: frame {number}: {error.strerror}", "device"))
        except DeviceError as error:
            newest.fail(error)
