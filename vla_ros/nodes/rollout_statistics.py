"""The figures of one rollout, as they stand in the result of ExecuteTask."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vla_ros.core.statistics import RolloutStatistics

# An image may still be on its way when its metadata is here.
_FRAME_GRACE_NS = 200_000_000


@dataclass
class Hold:
    """A time without live action; `end_ns` is None while it lasts."""

    reason: str
    start_ns: int
    end_ns: int | None = None


class FrameCount:
    """Counts the images that one camera published and those that arrived here, by their stamps."""

    def __init__(self) -> None:
        self._published: list[int] = []
        self._received: set[int] = set()

    def published(self, stamp_ns: int) -> None:
        """The metadata of an image arrived."""
        self._published.append(stamp_ns)

    def received(self, stamp_ns: int) -> None:
        """The image itself arrived."""
        self._received.add(stamp_ns)

    def between(self, start_ns: int, end_ns: int) -> dict[str, int]:
        """Returns how many of the images captured from `start_ns` to `end_ns` were published, received and lost."""
        stamps = sorted(self._published)
        stamps = stamps[bisect_left(stamps, start_ns) : bisect_right(stamps, end_ns)]
        received = sum(stamp in self._received for stamp in stamps)
        return {"published": len(stamps), "received": received, "lost": len(stamps) - received}


class TaskStatistics(RolloutStatistics):
    """The core's figures, with the images of each camera and the holds on the time axis."""

    def __init__(self, cameras: Iterable[str]) -> None:
        super().__init__()
        self.frames = {name: FrameCount() for name in cameras}
        self._holds: list[Hold] = []

    def hold(self, now_ns: int, reason: str) -> None:
        """Opens a hold, or closes the open one when `reason` is empty. A hold keeps its first reason."""
        is_open = bool(self._holds) and self._holds[-1].end_ns is None
        if reason and not is_open:
            self._holds.append(Hold(reason, now_ns))
        elif not reason and is_open:
            self._holds[-1].end_ns = now_ns

    def result(self, start_ns: int, end_ns: int, rejected_by_robots: Mapping[str, int]) -> dict[str, object]:
        """Returns what goes into the result's JSON for a rollout from `start_ns` to `end_ns`."""
        self.holds = [_entry(hold, start_ns, end_ns) for hold in self._holds]
        figures = self.summary()
        figures["frames"] = {name: count.between(start_ns, end_ns - _FRAME_GRACE_NS) for name, count in self.frames.items()}
        figures["rejected"] = dict(sorted((self.rejected + Counter(rejected_by_robots)).items()))
        return figures


def _entry(hold: Hold, start_ns: int, end_ns: int) -> dict[str, object]:
    last_ns = end_ns if hold.end_ns is None else hold.end_ns
    return {
        "reason": hold.reason,
        "t_s": round((hold.start_ns - start_ns) * 1e-9, 3),
        "duration_s": round((last_ns - hold.start_ns) * 1e-9, 3),
    }
