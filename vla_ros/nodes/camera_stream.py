"""Keeps one camera running: restarts it when it is lost, silent or frozen, numbers its frames, says what is wrong. Free of ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from vla_ros.core.errors import ConfigError, NotInstalled, VlaError
from vla_ros.core.freshness import Freshness
from vla_ros.core.interfaces import Camera
from vla_ros.core.types import Frame

LATE_S = 0.35  # with the 0.1 s between two diagnostics, a dead camera is told within 0.5 s
_LATE_PERIODS = 3  # a camera slower than 7.5 Hz may miss two frames
_FIRST_RETRY_NS, _LAST_RETRY_NS = 500_000_000, 5_000_000_000
_RATE_NS = 2_000_000_000


class CameraStream:
    """Call `step` as often as you like; time is passed in: steady (ns) for ages, ROS time (`clock`, ns) beside the frames' stamps.

    `clock` is asked when a frame has come: a camera's `read` may wait for it, and what was captured meanwhile is not from the future.

    Args:
        camera: the driver, not yet started.
        frame_id: of all frames.
        silence_s: without a usable frame for so long, or frozen for so long, the camera is restarted, s; the first frame may take
            `first_frame_s`.
        frozen_after_s: identical pictures for so long are a frozen camera, s; None: not tested.
        period_s: between frames, s; 0: unknown.

    Attributes:
        error: why the camera is lost; stays until a frame comes again.
        frames, restarts: counts.
        refused: frames that were not passed on because of their stamp.
    """

    def __init__(
        self,
        camera: Camera,
        frame_id: str,
        silence_s: float,
        frozen_after_s: float | None,
        first_frame_s: float = 15.0,
        period_s: float = 0.0,
    ) -> None:
        self._camera, self._frame_id = camera, frame_id
        self._silence_ns, self._first_ns = round(silence_s * 1e9), round(first_frame_s * 1e9)
        self._late_s = max(LATE_S, _LATE_PERIODS * period_s)
        self._fresh = Freshness(frozen_after_s)
        self._running = self._ended = False
        self._retry_ns, self._due_ns = _FIRST_RETRY_NS, 0
        self._arrivals: deque[int] = deque()
        self._alive_ns = self._started_ns = self._delay_ns = 0
        self._patience_ns = self._first_ns
        self.error = "not started"
        self.frames = self.restarts = self.refused = 0

    def start(self, now_ns: int) -> None:
        """Starts the camera. Raises what the driver raises; a later `step` tries again."""
        self._camera.start()
        self._running, self._ended = True, False
        self._alive_ns = self._started_ns = now_ns
        self._patience_ns = self._first_ns
        self.error = self.error if self.restarts else ""

    def step(self, now_ns: int, clock: Callable[[], int] | None = None) -> Frame | None:
        """Returns a new frame if there is one. Restarts a lost camera, with growing pauses, but not a recording that has ended."""
        try:
            if not self._running:
                if now_ns >= self._due_ns and not self._ended:
                    self.restarts += 1
                    self.start(now_ns)
                return None
            frame = self._camera.read()
        except (ConfigError, NotInstalled):
            raise
        except VlaError as error:
            self._ended = error.reason == "ended"
            self._lose(now_ns, str(error))
            return None
        taken = self._take(now_ns, frame, clock() if clock else None) if frame is not None else None
        if taken is None and now_ns - self._alive_ns > self._patience_ns:
            why = f": {self._fresh.refused}" if self._fresh.refused else ""
            self._lose(now_ns, f"no frame for {(now_ns - self._alive_ns) * 1e-9:.1f} s{why}")
        elif self._fresh.frozen_s() * 1e9 > self._silence_ns and now_ns - self._started_ns > self._silence_ns:
            self._lose(now_ns, f"frozen: identical pictures for {self._fresh.frozen_s():.1f} s")
        return taken

    def stop(self) -> None:
        """Stops the camera. Idempotent."""
        self._running, self.error = False, "stopped"
        self._camera.stop()

    def trouble(self, now_ns: int) -> str:
        """What is wrong, in words that stay the same while it lasts; "" for a camera that is well or has not yet had time to start."""
        if self.error:
            return f"lost: {self.error}"
        if self._patience_ns == self._silence_ns and self.age_s(now_ns) > self._late_s:
            return f"stalled: {self._fresh.refused.partition(',')[0] or 'no frames come'}"
        if self.frozen_s():
            return "frozen: identical pictures"
        if self.frames and self.delay_s > self._late_s:
            return f"late: pictures arrive more than {self._late_s:g} s after their capture"
        return ""

    def rate_hz(self, now_ns: int) -> float:
        """Frames a second over the last two seconds."""
        while self._arrivals and now_ns - self._arrivals[0] > _RATE_NS:
            self._arrivals.popleft()
        return len(self._arrivals) / (_RATE_NS * 1e-9)

    def age_s(self, now_ns: int) -> float:
        """Time since the newest usable frame, or since the start, s."""
        return (now_ns - self._alive_ns) * 1e-9

    def frozen_s(self) -> float:
        """For how long the picture has not changed, s; 0 when it is not tested or still shorter than allowed."""
        return self._fresh.frozen_s() if self._running else 0.0

    @property
    def delay_s(self) -> float:
        """From the newest frame's capture to its arrival, s."""
        return self._delay_ns * 1e-9

    def _take(self, now_ns: int, frame: Frame, clock_ns: int | None) -> Frame | None:
        if not self._fresh.add(frame, clock_ns):
            self.refused += 1
            return None
        self._alive_ns, self._patience_ns, self.error = now_ns, self._silence_ns, ""
        if not self._fresh.frozen_s():
            self._retry_ns = _FIRST_RETRY_NS
        self._delay_ns = clock_ns - frame.stamp_ns if clock_ns is not None else 0
        self._arrivals.append(now_ns)
        number, self.frames = self.frames, self.frames + 1
        return replace(frame, number=number, frame_id=self._frame_id)

    def _lose(self, now_ns: int, error: str) -> None:
        self.stop()
        self.error = error
        self._due_ns = now_ns + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
