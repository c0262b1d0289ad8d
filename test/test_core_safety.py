"""The limiter: each rejection by name, each clamp counted."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.collision import Gap, approach
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError, LimitError, StaleData, VlaError
from vla_ros.core.rotations import angle_between
from vla_ros.core.safety import Limiter
from vla_ros.core.types import Action, RobotState

NOW_NS = 1_763_700_000_000_000_000
TICK_NS = 20_000_000
ARM = load_embodiment("franka").robots["arm"]
HOME = np.array(ARM.home_rad)
POSITIONS = tuple(f"{joint}.position" for joint in ARM.joints)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ARM.joints)
TCP = np.array([0.5, 0.0, 0.3, np.pi, 0.0, 0.0])


def forward(position: np.ndarray) -> np.ndarray:
    """A robot whose first three joints move the TCP by 1 m/rad each."""
    return np.concatenate([TCP[:3] + (np.asarray(position) - HOME)[:3], TCP[3:]])


def limiter() -> Limiter:
    return Limiter(ARM, forward, period_s=0.02, age_limit_s=0.2)


def state(position: np.ndarray = HOME, stamp_ns: int = NOW_NS) -> RobotState:
    return RobotState(stamp_ns, ARM.joints, position, np.zeros(7), np.zeros(7), 0.04)


def joints(offset: object = 0.0, stamp_ns: int = NOW_NS) -> Action:
    return Action((*POSITIONS, "gripper.closed"), [*(HOME + np.asarray(offset) * np.eye(7)[0]), 1.0], stamp_ns, "policy")


def tcp(offset: object = (0, 0, 0), rotation: object = (np.pi, 0, 0), stamp_ns: int = NOW_NS) -> Action:
    return Action(TCP_POSE, [*(TCP[:3] + np.asarray(offset)), *rotation], stamp_ns, "policy")


def rejected(check: Limiter, action: Action, kind: type[VlaError], reason: str, message: str, measured: RobotState | None = None) -> None:
    with pytest.raises(kind, match=message) as error:
        check.check(action, measured or state(), NOW_NS)
    assert error.value.reason == reason
    assert check.rejected == {reason: 1}


def test_what_is_allowed_passes_unchanged() -> None:
    check = limiter()
    for action in (joints(0.01), tcp((0.005, 0, 0), stamp_ns=NOW_NS + 1), Action(VELOCITIES, np.full(7, 0.1), NOW_NS + 2)):
        sent = check.check(action, state(), NOW_NS)
        np.testing.assert_array_equal(sent.data, action.data)
        assert (sent.channels, sent.stamp_ns, sent.source) == (action.channels, action.stamp_ns, action.source)
    assert not check.rejected and not any(check.clamped.values())


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ((*POSITIONS[:-1], "fr3_joint8.position"), r"no channel 'fr3_joint8.position'; did you mean 'fr3_joint\d.position'"),
        (POSITIONS[:-1], "fr3_joint7.position is missing"),
        ((*POSITIONS[:-1], "tcp.x"), "control modes joint_position, tcp_pose"),
        (("left.tcp.x", *TCP_POSE[1:]), "tcp.x is missing|needs all of|left.tcp"),
        (("speed",), "channel 'speed' has no meaning"),
        (("gripper.closed",), "control modes none"),
        ((*POSITIONS, "gripper.closed", "gripper.width"), "not both"),
    ],
)
def test_channels(channels: tuple[str, ...], message: str) -> None:
    rejected(limiter(), Action(channels, np.zeros(len(channels)), NOW_NS), DataError, "channels", message)


def test_joints_in_another_order_are_understood() -> None:
    sent = limiter().check(Action(POSITIONS[::-1], (HOME + 0.01)[::-1], NOW_NS), state(), NOW_NS)
    np.testing.assert_allclose(sent.data, (HOME + 0.01)[::-1])


def test_source() -> None:
    check = limiter()
    check.source = "leader"
    rejected(check, joints(), LimitError, "source", "command from 'policy', but the selected source is 'leader'")


@pytest.mark.parametrize(("age_s", "message"), [(0.3, "command is 0.300 s old, limit 0.200 s"), (-0.3, "from the future")])
def test_stale_command(age_s: float, message: str) -> None:
    rejected(limiter(), joints(stamp_ns=NOW_NS - round(age_s * 1e9)), StaleData, "stale", message)


def test_stale_measurement() -> None:
    rejected(limiter(), joints(), StaleData, "stale", "measurement is 0.250 s old", state(stamp_ns=NOW_NS - 250_000_000))


def test_commands_out_of_order() -> None:
    check = limiter()
    check.check(joints(), state(), NOW_NS)
    rejected(check, joints(stamp_ns=NOW_NS - 1_000_000), StaleData, "stale", "1.0 ms older than the last one")


def test_not_finite() -> None:
    rejected(limiter(), joints(), DataError, "not_finite", "not finite", state(np.full(7, np.nan)))
    check = limiter()
    with pytest.raises(DataError) as error:
        joints(np.nan)
    check.count(error.value)
    assert check.rejected == {"not_finite": 1}


def test_joint_limits() -> None:
    near = HOME + 2.7 * np.eye(7)[0]
    rejected(limiter(), joints(2.75), LimitError, "limits", r"fr3_joint1 = 2.7500 rad, limits -2.7437 .. 2.7437", state(near))


@pytest.mark.parametrize(("channel", "value"), [("gripper.width", 0.09), ("gripper.closed", 1.2), ("gripper.closed", -1.0)])
def test_gripper_limits(channel: str, value: float) -> None:
    rejected(limiter(), Action((*POSITIONS, channel), [*HOME, value], NOW_NS), LimitError, "limits", channel)


def test_joint_step() -> None:
    rejected(limiter(), joints(0.6), LimitError, "step", "fr3_joint1: 0.600 rad from the measured position, limit 0.5")


def test_tcp_step_in_m_and_rad() -> None:
    rejected(limiter(), tcp((0.3, 0, 0)), LimitError, "step", "TCP target 0.300 m from the measured position, limit 0.25 m")
    rejected(limiter(), tcp(rotation=(np.pi - 1.0, 0, 0)), LimitError, "step", "turned 1.000 rad")


def test_a_half_turn_written_the_other_way_is_no_step() -> None:
    sent = limiter().check(tcp(rotation=(-np.pi + 0.01, 0, 0)), state(), NOW_NS)
    assert angle_between(sent.data[3:], [np.pi, 0, 0]) == pytest.approx(0.01)


def test_workspace_is_clamped_within_the_margin_and_rejected_beyond() -> None:
    low = HOME + np.array([0, 0, -0.29, 0, 0, 0, 0])  # the TCP at z = 0.01
    check = limiter()
    sent = check.check(tcp((0, 0, -0.31)), state(low), NOW_NS)
    assert sent.data[2] == pytest.approx(0.0)
    assert check.clamped["workspace_margin"] == 1
    rejected(
        limiter(), tcp((0, 0, -0.34)), LimitError, "workspace", r"tcp.z = -0.040 m, workspace 0.0 .. 0.8 m \(margin 0.03 m\)", state(low)
    )


def test_joint_targets_are_held_to_the_workspace_too() -> None:
    side = HOME + np.array([0, 0.49, 0, 0, 0, 0, 0])
    action = Action(POSITIONS, side + np.array([0, 0.05, 0, 0, 0, 0, 0]), NOW_NS)
    rejected(limiter(), action, LimitError, "workspace", "tcp.y = 0.540 m", state(side))
    outside = HOME + np.array([0, 0.6, 0, 0, 0, 0, 0])
    back = Action(POSITIONS, outside - np.array([0, 0.03, 0, 0, 0, 0, 0]), NOW_NS)
    limiter().check(back, state(outside), NOW_NS)  # the way back inside is open


def test_tcp_needs_forward_kinematics() -> None:
    rejected(Limiter(ARM), tcp(), DataError, "channels", "need forward kinematics")


def test_joint_velocity_limit_uses_the_time_between_commands() -> None:
    check = limiter()
    first = check.check(joints(0.3), state(), NOW_NS)
    assert first.data[0] == pytest.approx(HOME[0] + 2.0 * 0.02), "from the measured position, one period"
    second = check.check(joints(0.3, NOW_NS + 2 * TICK_NS), state(), NOW_NS)
    assert second.data[0] == pytest.approx(first.data[0] + 2.0 * 0.04), "from the last command, two periods"
    assert check.clamped["velocity"] == 2
    check.reset()
    third = check.check(joints(0.3, NOW_NS + 3 * TICK_NS), state(), NOW_NS)
    assert third.data[0] == pytest.approx(HOME[0] + 2.0 * 0.02), "after a hold from the measured position again"
    assert first.data[-1] == 1.0, "the gripper is not slowed down"


def test_a_gap_between_commands_is_no_licence_to_jump() -> None:
    check = limiter()
    check.check(joints(0.0), state(), NOW_NS)
    later = NOW_NS + 1_000_000_000
    sent = check.check(joints(0.3, later), state(stamp_ns=later), later)
    assert sent.data[0] == pytest.approx(HOME[0] + 2.0 * 0.02)


def test_tcp_velocity_limits() -> None:
    check = limiter()
    sent = check.check(tcp((0.06, 0.08, 0), rotation=(-np.pi + 0.5, 0, 0)), state(), NOW_NS)
    reach_m = ARM.tcp_velocity_max_m_s * 0.02
    np.testing.assert_allclose(sent.data[:3] - TCP[:3], [0.6 * reach_m, 0.8 * reach_m, 0], atol=1e-12)
    assert angle_between(sent.data[3:], TCP[3:]) == pytest.approx(2.5 * 0.02)
    assert angle_between(sent.data[3:], [-np.pi + 0.5, 0, 0]) == pytest.approx(0.45), "the short way, over the half turn"
    assert check.clamped["velocity"] == 1


def test_joint_velocities_are_clamped_and_stop_before_the_limit() -> None:
    check = Limiter(ARM, age_limit_s=0.2)
    sent = check.check(Action(VELOCITIES, [9.0, 0, 0, 0, 0, 0, -9.0], NOW_NS), state(), NOW_NS)
    np.testing.assert_allclose(sent.data, [2.0, 0, 0, 0, 0, 0, -2.5])
    assert check.clamped["velocity"] == 1 and check.clamped["position_margin"] == 0
    edge = HOME.copy()
    edge[0] = 2.7437 - 0.1
    sent = check.check(Action(VELOCITIES, [1.0, 0, 0, 0, 0, 0, 0], NOW_NS + 1), state(edge), NOW_NS)
    assert sent.data[0] == pytest.approx(0.1 / 0.2)
    assert check.clamped["position_margin"] == 1
    edge[0] = 2.8  # already over: outward is stopped, inward is free
    for wanted, sent_value in [(1.0, 0.0), (-1.0, -1.0)]:
        check.reset()
        assert check.check(Action(VELOCITIES, [wanted, 0, 0, 0, 0, 0, 0], NOW_NS), state(edge), NOW_NS).data[0] == sent_value


def test_random_commands_never_get_past_the_limits() -> None:
    rng = np.random.default_rng(0)
    check, sent, measured = limiter(), None, HOME
    for i in range(300):
        stamp_ns = NOW_NS + i * TICK_NS
        action = Action(POSITIONS, measured + rng.normal(size=7) * 0.2, stamp_ns)
        try:
            result = check.check(action, state(measured, stamp_ns), stamp_ns).data
        except (LimitError, DataError):
            continue
        assert (result >= ARM.position_min_rad).all() and (result <= ARM.position_max_rad).all()
        assert (np.abs(result - measured) <= np.array(ARM.velocity_max_rad_s) * 0.2 + 1e-9).all()
        sent, measured = result, result
    assert sent is not None and sum(check.rejected.values()) > 0


# Collisions, with a wall that joint 1 turns towards: at `wall` rad it is touched, each rad is a metre.


def wall_at(wall: float, margin_m: float = 0.01):
    return lambda position: Gap(wall - position[0], "hand", "wall", margin_m)


def guarded(wall: float) -> Limiter:
    """TCP targets are met by joint 1, a metre in x a rad."""
    predict = lambda position, target: np.asarray(position) + (target[0] - forward(position)[0]) * np.eye(7)[0]  # noqa: E731
    return Limiter(ARM, forward, clearance=wall_at(wall), predict=predict)


BY_MODE = {
    "joint_position": (lambda offset: joints(offset)),
    "joint_velocity": (lambda offset: Action(VELOCITIES, offset / 0.2 * np.eye(7)[0], NOW_NS)),
    "tcp_pose": (lambda offset: tcp((offset, 0, 0))),
}


@pytest.mark.parametrize("mode", BY_MODE)
def test_collision(mode: str) -> None:
    message = r"hand would come to 0.0080 m from wall, margin 0.01 m"
    rejected(guarded(0.018), BY_MODE[mode](0.01), LimitError, "collision", message)
    guarded(0.0201).check(BY_MODE[mode](0.01), state(), NOW_NS)


@pytest.mark.parametrize("mode", BY_MODE)
def test_from_too_close_only_the_way_out_is_open(mode: str) -> None:
    inside = state(HOME + 0.005 * np.eye(7)[0])
    rejected(guarded(0.01), BY_MODE[mode](0.006), LimitError, "collision", "margin 0.01 m", inside)
    guarded(0.01).check(BY_MODE[mode](-0.001), inside, NOW_NS)


def test_a_joint_target_is_looked_at_where_it_leads_not_only_as_far_as_it_is_sent() -> None:
    rejected(guarded(0.2), joints(0.3), LimitError, "collision", "hand would come to")


def test_tcp_targets_without_a_prediction_are_refused() -> None:
    check = Limiter(ARM, forward, clearance=wall_at(9.0))
    rejected(check, tcp(), DataError, "channels", r"give Limiter\(predict=...\) to look for collisions")
    check.check(joints(), state(), NOW_NS)


def test_a_thin_thing_on_the_way_is_seen() -> None:
    def pole(position: np.ndarray) -> Gap:
        return Gap(abs(position[0] - 0.25) - 0.08, "hand", "pole", 0.01)

    start, goal = np.zeros(7), 0.5 * np.eye(7)[0]
    assert pole(start).room_m > 0 and pole(goal).room_m > 0
    assert approach(pole, start, goal) is not None
    assert approach(pole, goal, 0.9 * np.eye(7)[0]) is None


def test_a_distance_that_is_not_a_number_is_too_close() -> None:
    assert approach(lambda _: Gap(np.nan, "hand", "wall", 0.0), np.zeros(7), np.ones(7)) is not None
