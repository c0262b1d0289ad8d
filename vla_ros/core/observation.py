"""Collects frames and states as they come and cuts out what a policy sees at one instant."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np

from vla_ros.core.errors import DataError, StaleData, did_you_mean
from vla_ros.core.freshness import FUTURE_S, Freshness
from vla_ros.core.types import Frame, Observation, Proprioception

HISTORY_S = 1.0


@dataclass
class _Camera:
    """What has come from one camera, and the newest frame that was news."""

    freshness: Freshness
    frame: Frame | None = None


class ObservationBuffer:
    """Newest frame per camera and the last second of states.

    Args:
        cameras: names that every observation must have.
        max_age_s: a frame or state older than this at the time of `get` is stale; so is one from the future.
        frozen_after_s: a camera whose picture is identical for so long while its stamps advance is frozen; per camera, or one for all;
            None switches the test off (a simulated scene at rest gives identical pictures).

    Thread-safe: frames and states may come from other threads than `get`.
    """

    def __init__(self, cameras: Iterable[str], max_age_s: float, frozen_after_s: Mapping[str, float | None] | float | None = None) -> None:
        self.cameras = tuple(cameras)
        self.max_age_s = max_age_s
        self._frozen_after_s = dict(frozen_after_s) if isinstance(frozen_after_s, Mapping) else dict.fromkeys(self.cameras, frozen_after_s)
        self._lock = Lock()
        self._newest: dict[str, _Camera] = {}
        self._states: deque[Proprioception] = deque()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._newest.clear()
            self._states.clear()

    def add_frame(self, name: str, frame: Frame, now_ns: int | None = None) -> None:
        """Takes a frame of camera `name`; one whose stamp is not newer than the last, or lies ahead of `now_ns`, is ignored.

        Raises:
            DataError: unknown camera, wrong image.
        """
        if name not in self.cameras:
            raise DataError(f"camera '{name}' is not in this observation; {did_you_mean(name, self.cameras)}", "channels")
        image = np.asarray(frame.image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"camera {name}: image {image.dtype} {image.shape}, expected uint8 [H, W, 3] RGB", "shape")
        with self._lock:
            camera = self._newest.setdefault(name, _Camera(Freshness(self._frozen_after_s.get(name))))
            if camera.freshness.add(frame, now_ns):
                camera.frame = frame

    def add_proprioception(self, state: Proprioception) -> None:
        """Takes a state; one that is not newer than the last is ignored. What is older than `HISTORY_S` is forgotten."""
        with self._lock:
            if self._states and state.stamp_ns <= self._states[-1].stamp_ns:
                return
            self._states.append(state)
            while state.stamp_ns - self._states[0].stamp_ns > HISTORY_S * 1e9:
                self._states.popleft()

    def get(self, now_ns: int, instruction: str) -> Observation:
        """Returns the newest frames, stamped with the oldest of them, and the state measured at that instant or just before.

        Raises:
            StaleData: names the camera or state that is missing, stale or frozen; its `reason` is "missing", "stale" or "frozen".
        """
        with self._lock:
            newest = {name: self._fresh(name, self._newest.get(name), now_ns) for name in self.cameras}
            states = list(self._states)
        if not states:
            raise StaleData("proprioception: none has come yet; is the proprioception node running?", "missing")
        self._check_age("proprioception", states[-1].stamp_ns, now_ns)
        stamp_ns = min((frame.stamp_ns for frame in newest.values()), default=states[-1].stamp_ns)
        before = bisect_right(states, stamp_ns, key=lambda state: state.stamp_ns) - 1
        if before < 0:
            late_s = (states[0].stamp_ns - stamp_ns) * 1e-9
            raise StaleData(f"proprioception: no state at the frames' instant, the first came {late_s:.3f} s later", "missing")
        self._check_age("proprioception at the frames' instant", states[before].stamp_ns, stamp_ns)
        return Observation(stamp_ns, newest, states[before], instruction)

    def _fresh(self, name: str, camera: _Camera | None, now_ns: int) -> Frame:
        """The newest frame of a camera, or StaleData that says why there is none to use."""
        refused = f"; {camera.freshness.refused}" if camera and camera.freshness.refused else ""
        if camera is None or camera.frame is None:
            raise StaleData(f"camera {name}: no frame has come yet{refused or '; is its node running?'}", "missing")
        self._check_age(f"camera {name}", camera.frame.stamp_ns, now_ns, refused)
        if frozen_s := camera.freshness.frozen_s():
            raise StaleData(f"camera {name}: identical image for {frozen_s:.2f} s ({camera.freshness.same} frames)", "frozen")
        return camera.frame

    def _check_age(self, what: str, stamp_ns: int, now_ns: int, hint: str = "") -> None:
        age_s = (now_ns - stamp_ns) * 1e-9
        if not -FUTURE_S <= age_s <= self.max_age_s:
            hint = "; its stamp lies in the future: are both clocks synchronised?" if age_s < 0 else hint
            raise StaleData(f"{what}: {age_s:.3f} s old, limit {self.max_age_s:.3f} s{hint}", "stale")
