"""Real-time chunking: weights of the design, and the hand-over of the committed rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_ros.core.errors import StaleData
from vla_ros.core.executors import make_executor, prefix_weights
from vla_ros.core.types import ActionChunk

START_NS = 1_763_700_000_000_000_000
DT_S = 0.1


def at(step: float) -> int:
    return START_NS + round(step * DT_S * 1e9)


def test_weights_of_the_design() -> None:
    expected = [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0, 0, 0]
    np.testing.assert_allclose(prefix_weights(10, 2, 6), expected, atol=5e-5)


@pytest.mark.parametrize(("horizon", "delay", "end"), [(10, 2, 6), (16, 0, 16), (50, 7, 25), (5, 5, 5), (8, 3, 30), (8, 6, 4), (8, 2, 0)])
def test_weights_by_formula(horizon: int, delay: int, end: int) -> None:
    end_row = min(end, horizon)
    first = min(delay, end_row)
    for i, weight in enumerate(prefix_weights(horizon, delay, end)):
        c = (end_row - i) / (end_row - first + 1)
        expected = 1.0 if i < first else c * (math.exp(c) - 1) / (math.e - 1) if i < end_row else 0.0
        assert weight == pytest.approx(expected, abs=1e-12)


def test_prefix_is_what_is_committed_at_the_new_rows() -> None:
    executor = make_executor("rtc", execution_horizon=6)
    assert executor.prefix(at(0), 2) is None, "the first chunk has nothing to continue"
    executor.add(ActionChunk(at(0), DT_S, ("j1.position",), np.arange(10.0)[:, None], 0))
    prefix = executor.prefix(at(3.5), 2)
    assert (prefix.stamp_ns, prefix.dt_s, prefix.channels) == (at(3.5), DT_S, ("j1.position",))
    np.testing.assert_allclose(prefix.data[:6, 0], [3.5, 4.5, 5.5, 6.5, 7.5, 8.5], atol=1e-9)
    np.testing.assert_allclose(prefix.weights, prefix_weights(10, 2, 6), atol=1e-12)
    np.testing.assert_allclose(prefix.data[6:, 0], 9.0, err_msg="past the end: never zeros")


def test_rows_past_the_committed_chunk_have_no_weight() -> None:
    executor = make_executor("rtc")
    executor.add(ActionChunk(at(0), DT_S, ("j1.position",), np.arange(10.0)[:, None], 0))
    weights = executor.prefix(at(6), 2).weights
    np.testing.assert_allclose(weights, prefix_weights(10, 2, 4), atol=1e-12)
    assert (weights[4:] == 0).all() and (weights[:4] > 0).all()


def test_prefix_goes_through_a_half_turn() -> None:
    angles = np.pi - 0.25 + 0.1 * np.arange(6)
    wrapped = (angles + np.pi) % (2 * np.pi) - np.pi
    data = np.zeros((6, 3))
    data[:, 0] = wrapped
    executor = make_executor("rtc")
    executor.add(ActionChunk(at(0), DT_S, ("tcp.rx", "tcp.ry", "tcp.rz"), data, 0))
    prefix = executor.prefix(at(0.5), 1)
    np.testing.assert_allclose(prefix.data[:5, 0], np.pi - 0.2 + 0.1 * np.arange(5), atol=1e-6, err_msg="continuous, no flip")


def test_a_delay_as_long_as_the_chunk_is_refused() -> None:
    executor = make_executor("rtc")
    executor.add(ActionChunk(at(0), DT_S, ("j1.position",), np.zeros((16, 1)), 0))
    with pytest.raises(StaleData, match=r"delay of 24 rows \(2\.40 s\) does not fit in a chunk of 16 rows"):
        executor.prefix(at(1), 24)


def test_executes_the_newest_chunk_from_where_it_became_usable() -> None:
    executor = make_executor("rtc")
    executor.add(ActionChunk(at(0), DT_S, ("j1.position",), np.arange(10.0)[:, None], 0))
    executor.at(at(4))
    executor.add(ActionChunk(at(3), DT_S, ("j1.position",), 100 + np.arange(10.0)[:, None], 1))
    assert executor.at(at(5)).data[0] == pytest.approx(102)
