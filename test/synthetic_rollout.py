"""A made-up rollout for the tests of the report: two cameras, overlapping chunks, one hold."""

import cv2
import numpy as np

from vla_ros.cli.record import Outcome, RolloutRecord, StatusSample
from vla_ros.core.types import Action, ActionChunk, Proprioception

START_NS = 1_700_000_000_000_000_000
CHANNELS = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.closed")
INSTRUCTION = "pick up the red block and put it on the plate"
STATISTICS = {
    "chunks": 40, "inference_ms": {"p50": 41.0, "p99": 63.0}, "observation_age_ms": {"p50": 70.0, "p99": 104.0},
    "tick_late_ms": {"p50": 0.1, "p99": 1.2, "max": 4.0}, "boundary_jump_rad": {"p50": 0.004, "p99": 0.02},
    "boundary_jump_m": {"p50": 0.001, "p99": 0.006}, "prediction_age_ms": {"p50": 80.0, "p99": 120.0},
    "frames": {"front": {"published": 60, "received": 60, "lost": 0}, "wrist": {"published": 60, "received": 59, "lost": 1}},
    "holds": [{"reason": "first_chunk", "t_s": 0.0, "duration_s": 0.2}], "rejected": {"limits": 2},
}  # fmt: skip


def at(t_s: float) -> int:
    return START_NS + round(t_s * 1e9)


def pose(t_s: float) -> np.ndarray:
    return np.array([0.5 + 0.1 * np.sin(t_s), 0.2 * np.cos(t_s), 0.3 - 0.05 * t_s, np.pi, 0.05 * t_s, 0.0, float(t_s > 2.0)])


def picture(t_s: float, colour: tuple[int, int, int]) -> bytes:
    """A disc that wanders over a ground of one colour (RGB), as JPEG."""
    image = np.full((360, 480, 3), colour, np.uint8)
    cv2.circle(image, (60 + int(80 * t_s), 180), 40, (250, 250, 250), -1)
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def record(duration_s: float = 4.0) -> RolloutRecord:
    made = RolloutRecord(start_ns=START_NS, end_ns=at(duration_s))
    for t_s in np.arange(0.0, duration_s, 1 / 15):
        made.frames.setdefault("front", []).append((at(t_s), picture(t_s, (180, 60, 40))))
        made.frames.setdefault("wrist", []).append((at(t_s), picture(t_s, (40, 60, 180))))
    for k, t_s in enumerate(np.arange(0.0, duration_s, 0.1)):
        rows = np.array([pose(t_s + 0.1 * row) for row in range(16)]) + 0.004 * np.sin(7.0 * k)
        made.chunks.append(ActionChunk(at(t_s), 0.1, CHANNELS, rows, k, inference_s=0.04 + 0.01 * np.sin(k)))
        made.chunk_arrival_ns.append(at(t_s + 0.06))
        hold = "first_chunk" if t_s < 0.2 else ""
        made.status.append(StatusSample(at(t_s), k, 41.0, 70.0 + k % 7, 0.004 + 0.001 * (k % 5), 0.001 + 0.0005 * (k % 4), hold))
    for t_s in np.arange(0.0, duration_s, 0.02):
        made.executed.append(Action(CHANNELS, pose(t_s), at(t_s), "policy"))
        made.proprioception.append(Proprioception(at(t_s), CHANNELS[:6], pose(t_s - 0.05)[:6]))
    return made


def outcome(word: str = "success", **changes: object) -> Outcome:
    values = {
        "instruction": INSTRUCTION, "task": INSTRUCTION, "seed": 3, "executor": "first", "outcome": word,
        "reason": "" if word == "success" else "why", "duration_s": 4.0, "statistics": STATISTICS,
    }  # fmt: skip
    return Outcome(**{**values, **changes})
