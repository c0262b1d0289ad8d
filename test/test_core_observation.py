"""What a policy sees: newest frames, the state of that instant, and an error that names what is missing, stale or frozen."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.errors import DataError, StaleData
from vla_ros.core.executors import Figures
from vla_ros.core.observation import ObservationBuffer
from vla_ros.core.statistics import RolloutStatistics, percentiles
from vla_ros.core.types import Frame, Proprioception

NOW_NS = 1_763_700_000_000_000_000
MS = 1_000_000


def frame(age_ms: float, value: int = 0, number: int = 0) -> Frame:
    return Frame(NOW_NS - round(age_ms * MS), np.full((48, 64, 3), value, dtype=np.uint8), number, "front_color_optical_frame")


def state(age_ms: float, value: float = 0.0) -> Proprioception:
    return Proprioception(NOW_NS - round(age_ms * MS), ("j1.position",), [value])


def filled(**options) -> ObservationBuffer:
    buffer = ObservationBuffer(("front", "wrist"), 0.2, **options)
    for age in range(300, -1, -10):
        buffer.add_proprioception(state(age, age))
    return buffer


def test_newest_frames_and_the_state_of_the_oldest_of_them() -> None:
    buffer = filled()
    for age in (120, 85, 52):
        buffer.add_frame("front", frame(age))
    buffer.add_frame("wrist", frame(33))
    observation = buffer.get(NOW_NS, "pick up the red block")
    assert observation.stamp_ns == NOW_NS - 52 * MS
    assert observation.frames["front"].stamp_ns == NOW_NS - 52 * MS
    assert observation.proprioception.data[0] == 60, "nearest before the stamp, never after"
    assert observation.instruction == "pick up the red block"


def test_older_frames_and_states_are_ignored() -> None:
    buffer = filled()
    buffer.add_frame("front", frame(20, value=1))
    buffer.add_frame("front", frame(40, value=2))
    buffer.add_frame("wrist", frame(20))
    buffer.add_proprioception(state(15, 99.0))
    observation = buffer.get(NOW_NS, "")
    assert observation.frames["front"].image[0, 0, 0] == 1
    assert observation.proprioception.data[0] == 20


@pytest.mark.parametrize(
    ("add", "message", "reason"),
    [
        (lambda b: None, "camera front: no frame has come yet", "missing"),
        (lambda b: b.add_frame("front", frame(10)), "camera wrist: no frame has come yet", "missing"),
        (
            lambda b: [b.add_frame("front", frame(250)), b.add_frame("wrist", frame(10))],
            "camera front: 0.250 s old, limit 0.200 s",
            "stale",
        ),
        (lambda b: [b.add_frame("front", frame(-900)), b.add_frame("wrist", frame(10))], "stamp lies in the future", "stale"),
    ],
)
def test_cameras_that_fail_are_named(add, message: str, reason: str) -> None:
    buffer = filled()
    add(buffer)
    with pytest.raises(StaleData, match=message) as error:
        buffer.get(NOW_NS, "")
    assert error.value.reason == reason


def test_state_that_fails_is_named() -> None:
    buffer = ObservationBuffer(("front",), 0.2)
    buffer.add_frame("front", frame(30))
    with pytest.raises(StaleData, match="proprioception: none has come yet"):
        buffer.get(NOW_NS, "")
    buffer.add_proprioception(state(250))
    with pytest.raises(StaleData, match=r"proprioception: 0\.250 s old"):
        buffer.get(NOW_NS, "")
    buffer.clear()
    buffer.add_frame("front", frame(30))
    buffer.add_proprioception(state(10))
    with pytest.raises(StaleData, match=r"the first came 0\.020 s later"):
        buffer.get(NOW_NS, "")


def test_a_frozen_camera_looks_healthy_but_is_named() -> None:
    buffer = filled(frozen_after_s={"front": 0.5, "wrist": None})
    for number, age in enumerate(range(530, -1, -66)):
        buffer.add_frame("front", frame(age, value=7, number=number))
        buffer.add_frame("wrist", frame(age, value=7, number=number))
    with pytest.raises(StaleData, match=r"camera front: identical image for 0\.53 s \(9 frames\)") as error:
        buffer.get(NOW_NS, "")
    assert error.value.reason == "frozen"
    buffer.add_frame("front", frame(-1, value=8))
    buffer.get(NOW_NS, "")  # one new picture, and it lives


def test_a_frame_from_the_future_does_not_hide_the_next_ones() -> None:
    buffer = filled()
    buffer.add_frame("wrist", frame(10), NOW_NS)
    buffer.add_frame("front", frame(-900), NOW_NS)
    with pytest.raises(StaleData, match=r"camera front: no frame has come yet; stamps lie in the future, by 0\.90 s") as error:
        buffer.get(NOW_NS, "")
    assert error.value.reason == "missing"
    buffer.add_frame("front", frame(20), NOW_NS)
    assert buffer.get(NOW_NS, "").frames["front"].stamp_ns == NOW_NS - 20 * MS


@pytest.mark.parametrize(
    ("stamp_of", "words"),
    [(lambda i: 250, "stand still"), (lambda i: 250 + i, "run backwards, by 0.009 s"), (lambda i: -800 - i, "lie in the future")],
)
def test_impossible_stamps_end_in_stale_and_are_named(stamp_of, words: str) -> None:
    buffer = filled()
    buffer.add_frame("wrist", frame(10), NOW_NS)
    buffer.add_frame("front", frame(250), NOW_NS)
    for i in range(10):
        buffer.add_frame("front", frame(stamp_of(i), value=i), NOW_NS)
    with pytest.raises(StaleData, match=rf"camera front: 0\.250 s old, limit 0\.200 s; stamps .*{words}") as error:
        buffer.get(NOW_NS, "")
    assert error.value.reason == "stale"


def test_a_stamp_slightly_ahead_is_two_clocks_and_more_is_refused() -> None:
    for ahead_ms, fine in [(40, True), (60, False)]:
        buffer = filled()
        buffer.add_frame("wrist", frame(10))
        buffer.add_frame("front", frame(-ahead_ms))
        if fine:
            buffer.get(NOW_NS, "")
        else:
            with pytest.raises(StaleData, match="its stamp lies in the future"):
                buffer.get(NOW_NS, "")


def test_one_limit_for_all_cameras_and_none_by_default() -> None:
    for limit_s, frozen in [(0.1, True), (None, False)]:
        buffer = filled(frozen_after_s=limit_s)
        for age in (150, 100, 10):
            buffer.add_frame("front", frame(age))
            buffer.add_frame("wrist", frame(age, value=age))
        if frozen:
            with pytest.raises(StaleData, match="camera front: identical"):
                buffer.get(NOW_NS, "")
        else:
            buffer.get(NOW_NS, "")


def test_states_are_kept_for_a_second() -> None:
    buffer = ObservationBuffer(("front",), 5.0)
    for age in range(3000, -1, -10):
        buffer.add_proprioception(state(age))
    buffer.add_frame("front", frame(1500))
    with pytest.raises(StaleData, match=r"no state at the frames' instant, the first came 0\.500 s later"):
        buffer.get(NOW_NS, "")


def test_wrong_frames_are_refused() -> None:
    buffer = filled()
    with pytest.raises(DataError, match="did you mean 'front'"):
        buffer.add_frame("frnt", frame(0))
    with pytest.raises(DataError, match=r"camera front: image float64 \(48, 64, 3\), expected uint8"):
        buffer.add_frame("front", Frame(NOW_NS, np.zeros((48, 64, 3)), 0, ""))


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50.0, "p99": 99.0, "max": 100.0}
    assert percentiles([1.0, 3.0], "mean", "p50") == {"mean": 2.0, "p50": 2.0}
    assert percentiles([]) == {"p50": None, "p99": None, "max": None}


def test_each_hand_over_is_taken_once() -> None:
    statistics = RolloutStatistics()
    statistics.add_chunk(0.01, 0.05)
    jumps = [(None, 1), (None, 1), (0.2, 2), (0.2, 2), (0.4, 3)]
    for i, (jump, hand_overs) in enumerate(jumps):
        statistics.add_tick(i * 1e-3, Figures(jump, None, 0.1, 1, hand_overs, {}))
    summary = statistics.summary()
    assert statistics.boundary_jump_rad == [0.2, 0.4]
    assert summary["chunks"] == 1 and summary["inference_ms"]["p50"] == pytest.approx(10.0)
    assert summary["observation_age_ms"]["p50"] == pytest.approx(50.0)
    assert summary["tick_late_ms"]["max"] == pytest.approx(4.0)
    assert summary["boundary_jump_m"] == {"p50": None, "p99": None}
