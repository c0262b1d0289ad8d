"""What a rollout leaves behind: its outcome with figures, and the data that the report and the video are made from. No ROS."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vla_ros.core.errors import DataError
from vla_ros.core.types import Action, ActionChunk, Proprioception

# What the result of ExecuteTask must report; each goes into rollout.json under the same name.
FIGURES = ("chunks", "inference_ms", "observation_age_ms", "tick_late_ms", "boundary_jump_rad", "frames", "holds", "rejected")

EXIT_SUCCESS, EXIT_FAILURE, EXIT_ERROR = 0, 1, 2


@dataclass(frozen=True)
class Outcome:
    """How one rollout ended. `outcome` is a word of ExecuteTask ("success", "failure", "time_limit", "canceled", "aborted").

    `statistics` are the figures of ExecuteTask's result; `wrong_object` tells whether an object that the task does not name was moved;
    `steps_done` of the task's `steps` were done in the end (0 of 0 where nobody judges).
    """

    instruction: str
    task: str
    seed: int | None
    executor: str
    outcome: str
    reason: str
    duration_s: float
    statistics: Mapping[str, object]
    wrong_object: bool = False
    steps_done: int = 0
    steps: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def exit_code(self) -> int:
        """0 for success, 1 for a task that was not done, 2 for a rollout that was aborted or cancelled."""
        if self.success:
            return EXIT_SUCCESS
        return EXIT_FAILURE if self.outcome in ("failure", "time_limit") else EXIT_ERROR

    def as_json(self) -> dict[str, object]:
        """Returns what rollout.json holds.

        Raises:
            DataError: the statistics lack a figure that a rollout must report.
        """
        missing = [name for name in FIGURES if name not in self.statistics]
        if missing:
            raise DataError(f"the result of ExecuteTask lacks {', '.join(missing)}; it has {', '.join(self.statistics) or 'nothing'}")
        head = {
            "success": self.success, "instruction": self.instruction, "seed": self.seed, "duration_s": round(self.duration_s, 3),
            "outcome": self.outcome, "reason": self.reason, "task": self.task, "executor": self.executor, "wrong_object": self.wrong_object,
            "steps_done": self.steps_done, "steps": self.steps,
        }  # fmt: skip
        return {**head, **self.statistics, **self.extra}


@dataclass(frozen=True)
class StatusSample:
    """One `RolloutStatus`: figures of the newest chunk at that instant."""

    stamp_ns: int
    chunks: int
    inference_ms: float
    observation_age_ms: float
    boundary_jump_rad: float
    boundary_jump_m: float
    hold_reason: str


@dataclass
class RolloutRecord:
    """The data of one rollout, in order of arrival. `frames` holds JPEG pictures with their capture stamps, per camera."""

    frames: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    chunks: list[ActionChunk] = field(default_factory=list)
    chunk_arrival_ns: list[int] = field(default_factory=list)
    executed: list[Action] = field(default_factory=list)
    proprioception: list[Proprioception] = field(default_factory=list)
    status: list[StatusSample] = field(default_factory=list)
    start_ns: int = 0
    end_ns: int = 0
    embodiment: str = ""

    def seconds(self, stamp_ns: int) -> float:
        """Returns an instant as s since the rollout began."""
        return (stamp_ns - self.start_ns) * 1e-9

    @property
    def duration_s(self) -> float:
        return self.seconds(self.end_ns)


def finite(value: object) -> object:
    """Returns JSON content with None for NaN and infinity, which JSON does not have (a percentile of nothing)."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes readable JSON; replaces the file in one step, so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
