"""Keeps one camera running: restarts it when it is lost or silent, numbers its frames, knows its rate. Free of ROS."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import replace

from vla_ros.core.errors import ConfigError, NotInstalled, VlaError
from vla_ros.core.interfaces import Camera
from vla_ros.core.types import Frame

_FIRST_RETRY_NS, _LAST_RETRY_NS = 500_000_000, 5_000_000_000
_RATE_NS = 2_000_000_000
_STRIDE = 8


class CameraStream:
    """Call `step` as often as you like; time is passed in (steady, ns).

    Args:
        camera: the driver, not yet started.
        frame_id: of all frames.
        silence_s: without a frame for so long the camera is restarted, s; the first one may take `first_frame_s`.
        frozen_after_s: identical pictures for so long are a frozen camera, s; None: not tested.
    """

    def __init__(self, camera: Camera, frame_id: str, silence_s: float, frozen_after_s: float | None, first_frame_s: float = 15.0) -> None:
        self._camera, self._frame_id = camera, frame_id
        self._silence_ns, self._first_ns = round(silence_s * 1e9), round(first_frame_s * 1e9)
        self._frozen_ns = None if frozen_after_s is None else round(frozen_after_s * 1e9)
        self._running = False
        self._retry_ns, self._due_ns = _FIRST_RETRY_NS, 0
        self._arrivals: deque[int] = deque()
        self._alive_ns = self._changed_ns = 0
        self._patience_ns = self._first_ns
        self._checksum = -1
        self.error = "not started"
        self.frames = self.restarts = 0

    def start(self, now_ns: int) -> None:
        """Starts the camera. Raises what the driver raises; a later `step` tries again."""
        self._camera.start()
        self._running, self._alive_ns, self._changed_ns, self.error = True, now_ns, now_ns, ""
        self._patience_ns = self._first_ns

    def step(self, now_ns: int) -> Frame | None:
        """Returns a new frame if there is one. Restarts a lost camera, with growing pauses; `error` says what is wrong."""
        try:
            if not self._running:
                if now_ns >= self._due_ns:
                    self.restarts += 1
                    self.start(now_ns)
                return None
            frame = self._camera.read()
        except (ConfigError, NotInstalled):
            raise
        except VlaError as error:
            self._lose(now_ns, str(error))
            return None
        if frame is None:
            if now_ns - self._alive_ns > self._patience_ns:
                self._lose(now_ns, f"no frame for {(now_ns - self._alive_ns) * 1e-9:.1f} s")
            return None
        return self._take(now_ns, frame)

    def stop(self) -> None:
        """Stops the camera. Idempotent."""
        self._running, self.error = False, "stopped"
        self._camera.stop()

    def rate_hz(self, now_ns: int) -> float:
        """Frames a second over the last two seconds."""
        while self._arrivals and now_ns - self._arrivals[0] > _RATE_NS:
            self._arrivals.popleft()
        return len(self._arrivals) / (_RATE_NS * 1e-9)

    def age_s(self, now_ns: int) -> float:
        """Time since the newest frame, or since the start, s."""
        return (now_ns - self._alive_ns) * 1e-9

    def frozen_s(self, now_ns: int) -> float:
        """For how long the picture has not changed, s; 0 when it is not tested or still shorter than allowed."""
        same_ns = now_ns - self._changed_ns
        return same_ns * 1e-9 if self._running and self._frozen_ns is not None and same_ns >= self._frozen_ns else 0.0

    def _take(self, now_ns: int, frame: Frame) -> Frame:
        self._alive_ns, self._retry_ns, self._patience_ns = now_ns, _FIRST_RETRY_NS, self._silence_ns
        self._arrivals.append(now_ns)
        if self._frozen_ns is not None:
            checksum = zlib.crc32(frame.image[::_STRIDE, ::_STRIDE].tobytes())
            if checksum != self._checksum:
                self._checksum, self._changed_ns = checksum, now_ns
        number, self.frames = self.frames, self.frames + 1
        return replace(frame, number=number, frame_id=self._frame_id)

    def _lose(self, now_ns: int, error: str) -> None:
        self.stop()
        self.error = error
        self._due_ns = now_ns + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
