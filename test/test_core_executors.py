"""Executors against oracles that are written here on their own, in plain loops."""

from __future__ import annotations

import math
from threading import Thread

import numpy as np
import pytest

from vla_ros.core.errors import ConfigError, DataError
from vla_ros.core.executors import EXECUTORS, make_executor, parse_executor
from vla_ros.core.types import ActionChunk

START_NS = 1_763_700_000_123_456_789
DT_S = 1 / 30  # no whole number of ns
JOINTS = ("j1.position", "j2.position", "j3.position")


def instant(step: float) -> int:
    return START_NS + round(step * DT_S * 1e9)


def chunk(step: float, data: object, sequence: int | None = None, channels: tuple[str, ...] = JOINTS) -> ActionChunk:
    return ActionChunk(instant(step), DT_S, channels, np.array(data, dtype=float), round(step) if sequence is None else sequence)


def ramp(step: float, rows: int = 5, offset: float = 0.0, sequence: int | None = None) -> ActionChunk:
    """A chunk of one joint whose value is the time in steps, plus `offset`."""
    return chunk(step, [[step + k + offset] for k in range(rows)], sequence, ("j1.position",))


def random_chunks(rng: np.random.Generator, horizon: int, steps: int, probability: float) -> list[ActionChunk]:
    """Chunks at some steps only (overlaps and gaps), of different lengths, with exact zeros in them."""
    chunks = []
    for step in range(steps):
        if rng.random() < probability:
            data = rng.normal(size=(int(rng.integers(1, horizon + 1)), len(JOINTS)))
            data[rng.random(data.shape) < 0.2] = 0.0
            data[rng.random(len(data)) < 0.2] = 0.0
            chunks.append(chunk(step, data))
    return chunks


def act_offline(chunks: list[ActionChunk], step: int, m: float) -> list[float] | None:
    """The formula of the ACT paper, for one step, oldest prediction first."""
    predictions = []
    for item in sorted(chunks, key=lambda c: c.stamp_ns):
        row = step - item.sequence
        if 0 <= row < len(item.data):
            predictions.append(item.data[row])
    if not predictions:
        return None
    weights = [math.exp(-m * i) for i in range(len(predictions))]
    return [sum(w * p[d] for w, p in zip(weights, predictions, strict=True)) / sum(weights) for d in range(len(JOINTS))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("m", [0.0, 0.01, 0.5])
def test_ensemble_is_the_offline_act_formula(seed: int, m: float) -> None:
    rng = np.random.default_rng(seed)
    chunks = random_chunks(rng, horizon=12, steps=60, probability=rng.choice([0.05, 0.3, 1.0]))
    executor = make_executor("ensemble", m=m)
    seen = 0
    for step in range(75):
        for item in chunks:
            if item.sequence == step:
                executor.add(item)
        expected, action = act_offline(chunks, step, m), executor.at(instant(step))
        assert (expected is None) == (action is None), f"step {step}"
        if action is not None:
            seen += 1
            np.testing.assert_allclose(action.data, expected, rtol=0, atol=1e-9)
            assert action.channels == JOINTS and action.stamp_ns == instant(step)
    assert seen >= len(chunks)


def test_online_is_offline_whatever_the_order_of_arrival() -> None:
    rng = np.random.default_rng(3)
    chunks = random_chunks(rng, horizon=10, steps=30, probability=0.6)
    offline = make_executor("ensemble")
    for i in rng.permutation(len(chunks)):
        offline.add(chunks[i])
    online = make_executor("ensemble")
    for step in range(40):
        for item in chunks:
            if item.sequence == step:
                online.add(item)
        t_ns = instant(step) + int(rng.integers(0, int(DT_S * 1e9)))
        # the chunk of the next step is not known online, and not live yet offline
        first, second = online.at(t_ns), offline.at(t_ns)
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_allclose(first.data, second.data, rtol=0, atol=1e-12)


def test_act_is_the_cumulative_form_of_the_online_literature() -> None:
    rng = np.random.default_rng(4)
    horizon, m = 8, 0.01
    weights = np.exp(-m * np.arange(horizon))
    executor, average, count = make_executor("ensemble", m=m), np.zeros((0, 3)), np.zeros((0, 1), dtype=int)
    for step in range(30):
        data = rng.normal(size=(horizon, 3))
        executor.add(chunk(step, data))
        total = weights.cumsum()
        average = (average * total[count - 1] + data[: len(average)] * weights[count]) / total[count]
        average = np.concatenate([average, data[len(average) :]])
        count = np.concatenate([count + 1, np.ones((horizon - len(count), 1), dtype=int)])
        np.testing.assert_allclose(executor.at(instant(step)).data, average[0], rtol=0, atol=1e-9)
        average, count = average[1:], count[1:]


def test_interpolates_between_rows() -> None:
    executor = make_executor("first")
    executor.add(chunk(0, [[0.0], [1.0], [5.0]], channels=("j1.position",)))
    for step, expected in [(0, 0.0), (0.25, 0.25), (1, 1.0), (1.5, 3.0), (2, 5.0)]:
        assert executor.at(instant(step)).data[0] == pytest.approx(expected, abs=1e-6)
    assert executor.at(instant(0) - 2000) is None
    assert executor.at(instant(2) + 2000) is None


@pytest.mark.parametrize("options", [{"weighting": "act"}, {"weighting": "age"}, {"weighting": "adaptive", "alpha": 3.0}])
def test_identical_predictions_give_the_prediction(options: dict) -> None:
    channels = ("j1.position", "tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.width")
    rng = np.random.default_rng(0)
    track = rng.normal(size=(40, 8))
    turns = rng.normal(size=(40, 3))
    track[:, 4:7] = turns / np.linalg.norm(turns, axis=1, keepdims=True) * rng.uniform(3.0, np.pi, size=(40, 1))
    executor = make_executor("ensemble", **options)
    for step in range(20):
        executor.add(chunk(step, track[step : step + 20], channels=channels))
        np.testing.assert_allclose(executor.at(instant(step)).data, track[step], rtol=0, atol=1e-9)
    assert executor.figures.boundary_jump_rad < 1e-7 and executor.figures.boundary_jump_m < 1e-9


def test_adaptive_weights_by_formula() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(6, 3))
    executor = make_executor("ensemble", weighting="adaptive", alpha=0.7)
    for i, row in enumerate(rows):
        executor.add(chunk(i, [row] * 10))
    newest = rows[-1]
    weights = [math.exp(0.7 * float(row @ newest) / float(np.linalg.norm(row) * np.linalg.norm(newest))) for row in rows]
    expected = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
    np.testing.assert_allclose(executor.at(instant(6)).data, expected, rtol=0, atol=1e-9)


def test_adaptive_bears_zero_actions() -> None:
    executor = make_executor("ensemble", weighting="adaptive")
    executor.add(chunk(0, [[1.0, 2.0, 3.0]] * 4))
    executor.add(chunk(1, [[0.0, 0.0, 0.0]] * 4))
    np.testing.assert_allclose(executor.at(instant(2)).data, [0.5, 1.0, 1.5], atol=1e-12)


def test_age_weights_by_formula() -> None:
    executor = make_executor("ensemble", weighting="age", m=2.0)
    for step, value in [(0, 1.0), (3, 5.0), (4, 7.0)]:
        executor.add(chunk(step, [[value] * 3] * 10))
    ages = [(6 - step) * DT_S for step in (0, 3, 4)]
    weights = np.exp(-2.0 * np.array(ages))
    weights /= weights.sum()
    np.testing.assert_allclose(executor.at(instant(6)).data, [weights @ [1.0, 5.0, 7.0]] * 3, atol=1e-6)
    assert executor.figures.prediction_age_s == pytest.approx(float(weights @ ages), abs=1e-6)
    assert executor.figures.live == 3


def test_max_age_leaves_old_predictions_out() -> None:
    executor = make_executor("ensemble", m=0.0, max_age_s=2.5 * DT_S)
    for step, value in [(0, 100.0), (4, 2.0), (5, 4.0)]:
        executor.add(chunk(step, [[value] * 3] * 20))
    assert executor.at(instant(6)).data[0] == pytest.approx(3.0)
    assert executor.at(instant(12)).data[0] == pytest.approx(4.0), "with nothing young, the youngest"


def test_chunk_follows_its_rows_then_compensates_latency() -> None:
    executor = make_executor("chunk", execute_steps=3)
    executor.add(ramp(0, rows=8))
    assert executor.at(instant(1)).data[0] == pytest.approx(1)  # takes over at step 1, so it is followed until step 4
    executor.add(ramp(1, rows=8, offset=100))
    executor.add(ramp(2, rows=8, offset=200))
    assert [round(executor.at(instant(s)).data[0], 6) for s in (2, 3)] == [2, 3]
    assert [round(executor.at(instant(s)).data[0], 6) for s in (4, 5, 6)] == [204, 205, 206], "the newest, at its row for now"
    assert executor.figures.hand_overs == 2
    assert executor.figures.boundary_jump_rad == pytest.approx(200)


def test_chunk_goes_on_with_what_is_left_then_gives_nothing() -> None:
    executor = make_executor("chunk", execute_steps=2)
    executor.add(ramp(0, rows=5))
    assert [round(executor.at(instant(s)).data[0], 6) for s in range(5)] == [0, 1, 2, 3, 4]
    assert executor.at(instant(5)) is None
    assert executor.figures.live == 0
    executor.add(ramp(4, rows=5, offset=10))
    assert executor.at(instant(6)).data[0] == pytest.approx(16)
    assert executor.figures.boundary_jump_rad is None, "nothing older was live to compare with"


def test_chunk_never_goes_back_to_an_older_chunk() -> None:
    executor = make_executor("chunk", execute_steps=1)
    executor.add(ramp(2, rows=3, sequence=2))
    assert executor.at(instant(2)).data[0] == pytest.approx(2)
    executor.add(ramp(0, rows=20, offset=50, sequence=1))
    assert executor.at(instant(4)).data[0] == pytest.approx(4)
    assert executor.at(instant(5)) is None


def test_first_takes_the_newest_at_once() -> None:
    executor = make_executor("first")
    executor.add(ramp(0, rows=10))
    assert executor.at(instant(3)).data[0] == pytest.approx(3)
    assert executor.figures.prediction_age_s == pytest.approx(3 * DT_S)
    executor.add(ramp(3, rows=10, offset=0.5))
    assert executor.at(instant(4)).data[0] == pytest.approx(4.5)
    assert executor.figures.boundary_jump_rad == pytest.approx(0.5)
    assert executor.figures.prediction_age_s == pytest.approx(DT_S)


@pytest.mark.parametrize("name", list(EXECUTORS))
def test_late_reordered_and_duplicate_chunks(name: str) -> None:
    executor = make_executor(name)
    executor.add(ramp(5, rows=10, sequence=5))
    assert executor.at(instant(8)).data[0] == pytest.approx(8)
    executor.add(ramp(0, rows=5, offset=99, sequence=0))  # ended at step 4
    executor.add(ramp(5, rows=10, offset=99, sequence=5))  # the same again
    assert executor.at(instant(9)).data[0] == pytest.approx(9)
    executor.add(ramp(3, rows=20, offset=2, sequence=3))  # older than what is there, still live
    assert executor.figures.refused == {"late": 1, "duplicate": 1, "reordered": 1}
    value = executor.at(instant(10)).data[0]
    if name == "ensemble":
        older = 1 / (1 + math.exp(-0.01))
        assert value == pytest.approx(10 + 2 * older, abs=1e-6), "the reordered chunk counts as the oldest"
    else:
        assert value == pytest.approx(10), "an older chunk never replaces a newer one"


@pytest.mark.parametrize("name", list(EXECUTORS))
def test_a_chunk_from_the_future_waits_for_its_time(name: str) -> None:
    executor = make_executor(name)
    executor.add(ramp(3, rows=4))
    assert executor.at(instant(1)) is None
    assert executor.at(instant(3)).data[0] == pytest.approx(3)


@pytest.mark.parametrize("name", list(EXECUTORS))
@pytest.mark.parametrize("channel", ["gripper.closed", "gripper.width", "left.gripper.closed"])
def test_grippers_are_never_averaged(name: str, channel: str) -> None:
    executor = make_executor(name) if name != "chunk" else make_executor(name, execute_steps=1)
    rng = np.random.default_rng(1)
    values = rng.choice([0.0, 1.0], size=(12, 10))
    for step in range(12):
        executor.add(chunk(step, [[0.0, value] for value in values[step]], channels=("j1.position", channel)))
        for share in (0.0, 0.3, 0.99):
            assert executor.at(instant(step + share)).data[1] == values[step][0], "newest chunk, row before"


@pytest.mark.parametrize("name", list(EXECUTORS))
def test_rotations_pass_through_a_half_turn(name: str) -> None:
    channels = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz")

    def row(angle: float) -> list[float]:
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        return [0.4, 0.0, 0.3, wrapped, 0.0, 0.0]

    executor = make_executor(name)
    executor.add(chunk(0, [row(np.pi - 0.2 + 0.1 * k) for k in range(6)], channels=channels))
    for step in (0.0, 1.5, 2.5, 3.0, 4.7):
        rx = executor.at(instant(step)).data[3:]
        assert np.cos(rx[0]) == pytest.approx(np.cos(np.pi - 0.2 + 0.1 * step), abs=1e-6)
        assert np.sin(rx[0]) == pytest.approx(np.sin(np.pi - 0.2 + 0.1 * step), abs=1e-6)
        np.testing.assert_allclose(rx[1:], 0, atol=1e-9)


def test_ensemble_averages_rotations_on_both_sides_of_a_half_turn() -> None:
    channels = ("tcp.rx", "tcp.ry", "tcp.rz")
    executor = make_executor("ensemble", m=0.0)
    executor.add(chunk(0, [[np.pi - 0.1, 0, 0]] * 10, channels=channels))
    executor.add(chunk(1, [[-np.pi + 0.3, 0, 0]] * 10, channels=channels))
    rx = executor.at(instant(2)).data[0]
    assert rx % (2 * np.pi) == pytest.approx(np.pi + 0.1), "the numbers' mean would be next to 0"
    assert executor.figures.boundary_jump_rad is None
    executor.add(chunk(2, [[-np.pi + 0.3, 0, 0]] * 10, channels=channels))
    executor.at(instant(3))
    assert executor.figures.boundary_jump_rad == pytest.approx(0.2 / 3, abs=1e-6)
    assert executor.figures.boundary_jump_m is None


def test_jump_is_the_largest_of_rotation_joint_and_translation() -> None:
    channels = ("j1.position", "tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.width")
    executor = make_executor("first")
    executor.add(chunk(0, [[0.0, 0, 0, 0, np.pi, 0, 0, 0.0]] * 9, channels=channels))
    executor.at(instant(1))
    executor.add(chunk(1, [[0.1, 0.03, 0.04, 0, -np.pi + 0.3, 0, 0, 0.08]] * 9, channels=channels))
    executor.at(instant(2))
    assert executor.figures.boundary_jump_rad == pytest.approx(0.3)
    assert executor.figures.boundary_jump_m == pytest.approx(0.05)


@pytest.mark.parametrize("name", list(EXECUTORS))
def test_no_figures_and_no_action_before_the_first_chunk(name: str) -> None:
    executor = make_executor(name)
    assert executor.at(START_NS) is None
    figures = executor.figures
    assert (figures.boundary_jump_rad, figures.boundary_jump_m, figures.prediction_age_s) == (None, None, None)
    executor.add(ramp(0))
    executor.at(instant(1))
    assert executor.figures.prediction_age_s is not None
    executor.reset()
    assert executor.at(instant(1)) is None
    assert executor.figures == figures
    executor.add(chunk(0, [[1.0, 2.0, 3.0]]))  # another rollout may have other channels


def test_other_channels_are_an_error() -> None:
    executor = make_executor("first")
    executor.add(ramp(0))
    with pytest.raises(DataError, match=r"j2\.position; this rollout began with j1\.position") as error:
        executor.add(chunk(1, [[0.0]], channels=("j2.position",)))
    assert error.value.reason == "channels"
    with pytest.raises(DataError, match=r"tcp\.rz is missing"):
        make_executor("first").add(chunk(0, [[0.0, 0.0]], channels=("tcp.rx", "tcp.ry")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_executor("ensembel"), "did you mean 'ensemble'"),
        (lambda: make_executor("ensemble", wheighting="act"), "did you mean 'weighting'"),
        (lambda: make_executor("ensemble", weighting="adaptiv"), "did you mean 'adaptive'"),
        (lambda: make_executor("ensemble", m=-1), "m = -1"),
        (lambda: make_executor("chunk", execute_steps=0), "execute_steps = 0"),
        (lambda: make_executor("rtc", execution_horizon=2.5), "execution_horizon = 2.5"),
        (lambda: parse_executor("chunk:8"), "option=value"),
        (lambda: parse_executor("chunk:exec_steps=8"), "did you mean 'execute_steps'"),
    ],
)
def test_options_are_checked(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_executor_from_one_word() -> None:
    assert parse_executor("first") == {"name": "first"}
    assert parse_executor("ensemble:weighting=age,m=2.5") == {"name": "ensemble", "weighting": "age", "m": 2.5}


def test_add_and_at_from_two_threads() -> None:
    executor = make_executor("ensemble")
    executor.add(ramp(0, rows=10))

    def infer() -> None:
        for step in range(1, 400):
            executor.add(ramp(step / 10, rows=10, sequence=step))

    thread = Thread(target=infer)
    thread.start()
    values = [executor.at(instant(5)).data[0] for _ in range(400)]
    thread.join()
    np.testing.assert_allclose(values, 5.0, atol=1e-6)
