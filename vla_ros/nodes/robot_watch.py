"""What a rollout must know of the robots it drives: are they ready, do they follow, has one given up. Free of ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from vla_ros.nodes.msgs import RobotReport


class RobotWatch:
    """Feed it the robots' reports with `heard`; `not_ready` asks before the start, `fault` while they should follow.

    Args:
        names: the robots.
        source: the selected source that they must have.
        silence_s: how old a robot's newest report may be, s.
        patience_s: how long a robot may hold although commands are sent, s.
    """

    def __init__(self, names: Iterable[str], source: str, silence_s: float, patience_s: float) -> None:
        self._names, self._source = tuple(names), source
        self._silence_ns, self._patience_ns = round(silence_s * 1e9), round(patience_s * 1e9)
        self._reports: dict[str, RobotReport] = {}
        self._heard_ns: dict[str, int] = {}
        self._good_ns: dict[str, int] = {}
        self._before: dict[str, Mapping[str, int]] = {}
        self._start_ns = 0

    def heard(self, now_ns: int, name: str, report: RobotReport) -> None:
        """A report of robot `name` arrived."""
        self._reports[name], self._heard_ns[name] = report, now_ns

    def not_ready(self, now_ns: int) -> str:
        """Returns why the robots cannot be handed over, "" when they can."""
        for name in self._names:
            report = self._reports.get(name)
            if report is None or now_ns - self._heard_ns[name] > self._silence_ns:
                return f"{name}: no status from its node"
            if report.state not in ("hold", "following"):
                return f"{name} {report.state}: {_why(report)}"
        return ""

    def start(self, now_ns: int) -> None:
        """The robots were handed over: what they report from now on counts."""
        self._start_ns = now_ns
        self._good_ns = dict.fromkeys(self._names, now_ns)
        self._before = {name: dict(report.rejected) for name, report in self._reports.items()}

    def fault(self, now_ns: int, commanded: bool) -> str:
        """Returns why the rollout cannot go on, "" when it can; `commanded` says whether actions (not holds) are being sent."""
        for name in self._names:
            report, silence_ns = self._reports[name], now_ns - self._heard_ns[name]
            if silence_ns > self._silence_ns:
                return f"{name}: no status from its node for {silence_ns * 1e-9:.2f} s"
            if report.stamp_ns < self._start_ns:
                continue
            if report.state in ("stopped", "disconnected"):
                return f"{name} {report.state}: {_why(report)}"
            if report.source != self._source:
                return f"{name}: the source is now '{report.source}', not '{self._source}'"
            if report.state == "hold" and self._rejections(name)[report.reason]:
                return f"{name} holds: {_why(report)}"
            if report.state == "following" or not commanded:
                self._good_ns[name] = now_ns
            if now_ns - self._good_ns[name] > self._patience_ns:
                return f"{name} holds although it is commanded: {_why(report)}"
        return ""

    def rejected(self) -> Counter[str]:
        """Returns how many commands the robots rejected since `start`, by name of the rejection."""
        return sum((self._rejections(name) for name in self._before), Counter())

    def _rejections(self, name: str) -> Counter[str]:
        # A robot node that was activated anew counts from 0 again: then a difference is below zero and drops out.
        return Counter(self._reports[name].rejected) - Counter(self._before.get(name, {}))


def _why(report: RobotReport) -> str:
    return ": ".join(part for part in (report.reason, report.detail) if part) or "no reason given"
