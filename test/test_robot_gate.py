"""Who may drive, what is let through, when the robot holds: the gate in front of a robot that only notes what it is told."""

from __future__ import annotations

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.core.safety import Limiter
from vla_ros.core.types import Action, RobotState
from vla_ros.nodes.command_gate import CommandGate, State
from vla_ros.nodes.joint_motion import plan_course
from vla_ros.robots.kinematics import Kinematics

ROBOT = load_embodiment("franka").robots["arm"]
HOME = np.array(ROBOT.home_rad)
POSITIONS = tuple(f"{joint}.position" for joint in ROBOT.joints)
START_NS = 1_700_000_000_000_000_000
TICK_NS = 20_000_000


class NotingRobot:
    """Stands still at home; `told` is what it heard, `error` what it answers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.error: Exception | None = None
        self.now_ns = START_NS

    def read(self) -> RobotState:
        if isinstance(self.error, StaleData):
            raise self.error
        return RobotState(self.now_ns, ROBOT.joints, HOME, np.zeros(7), np.zeros(7), 0.08)

    def command(self, action: Action) -> Action:
        if self.error:
            raise self.error
        self.told.append("command")
        return action

    def stop(self) -> None:
        self.told.append("stop")


class Desk:
    """A gate with a clock: `send` is one command, `wait` lets time pass."""

    def __init__(self) -> None:
        self.robot, self.log = NotingRobot(), []
        limiter = Limiter(ROBOT, Kinematics(ROBOT).tcp)
        self.gate = CommandGate(self.robot, limiter, 0.15, lambda reason, _: self.log.append(reason))
        self.gate.update(0)

    def wait(self, duration_s: float) -> None:
        self.robot.now_ns += round(duration_s * 1e9)
        self.gate.update(self.robot.now_ns)

    def send(self, data=HOME, source="policy", channels=POSITIONS, age_s=0.0) -> Action | None:
        self.wait(0.02)
        now_ns = self.robot.now_ns
        return self.gate.command(lambda: Action(channels, data, now_ns - round(age_s * 1e9), source), source, now_ns, now_ns)


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.gate.select("policy")
    desk.robot.told.clear()
    return desk


def test_nobody_drives_before_a_source_is_selected():
    desk = Desk()
    assert desk.send() is None
    assert desk.gate.rejected == {"source": 1}
    assert desk.robot.told == []


def test_the_selected_source_is_followed(desk):
    executed = desk.send()
    np.testing.assert_array_equal(executed.data, HOME)
    assert desk.gate.shown == (State.FOLLOWING, "policy", "", "")
    assert desk.gate.accepted == 1


def test_another_source_is_counted_and_changes_nothing(desk):
    desk.send()
    assert desk.send(source="leader") is None
    assert desk.gate.rejected == {"source": 1}
    assert desk.gate.state == State.FOLLOWING
    assert "stop" not in desk.robot.told


def test_a_change_of_source_goes_through_a_hold(desk):
    desk.send()
    assert desk.gate.select("leader") == "policy"
    assert desk.robot.told[-1] == "stop"
    assert desk.gate.state == State.HOLD
    assert desk.send() is None
    assert desk.send(source="leader") is not None


BAD = {
    "not_finite": {"data": [np.nan, *HOME[1:]]},
    "channels": {"channels": POSITIONS[:6], "data": HOME[:6]},
    "stale": {"age_s": 0.5},
    "limits": {"data": [9.0, *HOME[1:]]},
    "step": {"data": [1.0, *HOME[1:]]},
    "workspace": {"channels": ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz"), "data": [2.0, 0.0, 0.4, np.pi, 0.0, 0.0]},
}


@pytest.mark.parametrize("name", BAD)
def test_a_rejected_command_holds_until_the_source_is_selected_anew(desk, name):
    desk.send()
    desk.robot.told.clear()
    assert desk.send(**BAD[name]) is None
    assert desk.robot.told == ["stop"]
    assert desk.gate.shown[:3] == (State.HOLD, "policy", name)
    assert desk.gate.detail
    assert desk.log == [name]
    assert desk.send() is None
    assert desk.gate.rejected == {name: 1, "not_following": 1}
    assert desk.robot.told == ["stop"]
    desk.gate.select("policy")
    assert desk.send() is not None


def test_no_command_holds_and_the_next_one_goes_on(desk):
    desk.send()
    desk.wait(0.1)
    assert desk.gate.state == State.FOLLOWING
    desk.wait(0.06)
    assert desk.gate.shown[:3] == (State.HOLD, "policy", "command_timeout")
    assert desk.robot.told == ["command", "stop"]
    assert desk.send() is not None
    assert desk.gate.state == State.FOLLOWING


def test_a_wish_to_hold_is_granted_once_and_the_next_command_goes_on(desk):
    desk.send()
    for _ in range(3):
        desk.gate.hold("no_live_action", "the chunk is over")
    assert desk.robot.told == ["command", "stop"]
    assert desk.gate.reason == "no_live_action"
    assert desk.send() is not None


def test_stop_latches_until_recovery(desk):
    desk.send()
    desk.gate.stop("stop", "asked")
    assert desk.robot.told[-1] == "stop"
    assert desk.send() is None
    assert desk.gate.rejected == {"stopped": 1}
    with pytest.raises(DeviceError, match="recover"):
        desk.gate.select("policy")
    desk.gate.release()
    desk.gate.recovered(None)
    assert desk.gate.state == State.HOLD
    assert desk.send() is None, "a recovered robot waits for a source"
    desk.gate.select("policy")
    assert desk.send() is not None


def test_a_fault_of_the_device_stops(desk):
    desk.send()
    desk.robot.error = DeviceError("cartesian_reflex", "fault")
    assert desk.send() is None
    assert desk.gate.shown == (State.STOPPED, "policy", "fault", "cartesian_reflex")


def test_a_dead_link_is_disconnected_and_comes_back_in_hold(desk):
    desk.send()
    desk.robot.error = StaleData("no new state for 0.2 s", "link_lost")
    assert desk.send() is None
    assert desk.gate.shown[:3] == (State.DISCONNECTED, "policy", "link_lost")
    assert desk.gate.rejected == {"disconnected": 1}
    desk.gate.recovered(DeviceError("still dead"))
    assert desk.gate.state == State.DISCONNECTED
    desk.robot.error = None
    desk.gate.recovered(None)
    assert desk.gate.state == State.HOLD
    assert desk.send() is None
    desk.gate.select("policy")
    assert desk.send() is not None


def test_a_stop_outlives_a_dead_link(desk):
    desk.gate.stop("stop", "asked")
    desk.robot.error = StaleData("no new state", "link_lost")
    desk.wait(0.02)
    assert desk.gate.state == State.DISCONNECTED
    desk.robot.error = None
    desk.gate.recovered(None)
    assert desk.gate.shown[:3] == (State.STOPPED, "policy", "stop")


def test_a_course_starts_and_ends_at_rest_within_the_speed():
    course = plan_course(ROBOT, HOME, [ROBOT.joints[0]], [1.0], 0.25)
    np.testing.assert_allclose(course.at(0.0), HOME)
    np.testing.assert_allclose(course.at(course.duration_s + 1.0)[0], 1.0)
    times = np.linspace(0.0, course.duration_s, 2001)
    speed = np.gradient([course.at(t)[0] for t in times], times)
    assert speed.max() == pytest.approx(0.25 * ROBOT.velocity_max_rad_s[0], rel=0.01)
    assert abs(speed[0]) < 0.01
    assert abs(speed[-1]) < 0.01
