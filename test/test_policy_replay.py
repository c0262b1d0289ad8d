"""The replay policy: what was executed comes back at the same instants, and a broken recording is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.core.types import Action
from vla_ros.policies import load_policy
from vla_ros.policies.replay import ACTIONS, DT_S, ROWS, write_actions

TCP = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz", "gripper.closed")
START_NS = 1_795_000_000_000_000_000


def executed(channels=TCP, rows: int = 100) -> list[Action]:
    """50 Hz: x runs at 0.1 m/s, the gripper closes after 1 s, the rotation vector flips sign at half a turn."""
    actions = []
    for k in range(rows):
        angle = np.pi + 0.002 * (k - 50)
        turn = angle if angle <= np.pi else angle - 2 * np.pi
        actions.append(Action(channels, [0.3 + 0.002 * k, 0.0, 0.2, turn, 0.0, 0.0, float(k >= 50)], START_NS + k * 20_000_000))
    return actions


def infer(policy, after_s: float):
    return policy.infer(SimpleNamespace(stamp_ns=START_NS + 7_000_000_000 + round(after_s * 1e9))).chunk


def test_what_was_executed_comes_back_in_time(tmp_path):
    write_actions(tmp_path / ACTIONS, "franka", executed(), START_NS)
    policy = load_policy(str(tmp_path), load_embodiment("franka"))
    policy.reset()
    first, later = infer(policy, 0.0), infer(policy, 0.75)
    assert (first.sequence, later.sequence, first.dt_s, first.data.shape) == (0, 1, DT_S, (ROWS, 7))
    times_s = 0.75 + DT_S * np.arange(ROWS)
    assert later.data[:, 0] == pytest.approx(0.3 + 0.1 * np.minimum(times_s, 1.98))
    assert later.data[:, 6] == pytest.approx((times_s >= 1.0 - 1e-9).astype(float))
    assert np.abs(np.diff(first.data[:, 3])).max() < 0.02, "the rotation goes the short way over half a turn"
    policy.reset()
    assert infer(policy, 5.0).data[0, 0] == pytest.approx(0.3), "rewound"


def test_two_arms_that_executed_at_their_own_times(tmp_path):
    embodiment = load_embodiment("aloha")
    joints = embodiment.robots["left"].joints
    actions = []
    for number, arm in enumerate(("left", "right")):
        channels = (*(f"{arm}.{joint}.position" for joint in joints), f"{arm}.gripper.width")
        actions += [Action(channels, [0.01 * k] * 6 + [0.05], START_NS + k * 20_000_000 + number * 3_000_000) for k in range(10)]
    write_actions(tmp_path / ACTIONS, "aloha", actions, START_NS)
    chunk = infer(load_policy(str(tmp_path), embodiment), 0.0)
    assert chunk.data.shape == (ROWS, 14) and chunk.channels[7].startswith("right.")
    assert chunk.data[2, 0] == pytest.approx(0.05) and chunk.data[2, 7] == pytest.approx(0.0485)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "not a recording of actions"),
        ({"streams": []}, "KeyError"),
        ({"embodiment": "franka", "streams": []}, "holds no actions"),
        ({"embodiment": "aloha", "streams": []}, "recorded on embodiment 'aloha', this rig has 'franka'"),
        ({"embodiment": "franka", "streams": [{"channels": ["a.position"], "times_s": [0, 1], "data": [[1.0]]}]}, "for 2 times and 1"),
        ({"embodiment": "franka", "streams": [{"channels": ["a.position"], "times_s": [1, 0], "data": [[1.0], [2.0]]}]}, "run backwards"),
        ({"embodiment": "franka", "streams": [{"channels": ["tcp.x"], "times_s": [0], "data": [[1.0]]}]}, "tcp.y"),
    ],
)
def test_a_broken_recording_is_named(tmp_path, content, message):
    (tmp_path / ACTIONS).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PolicyError, match=message):
        load_policy(str(tmp_path), load_embodiment("franka"))
