"""Twists: what the simulated base makes of them, and the Kinova driver with `control: twist`, over its real protocol on real sockets."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from driving import command, wait_for
from kinova_box import HOME, PATIENT, PERIOD_S, POSITIONS, ROBOT, VELOCITIES, KinovaBox, drive, error_of, standing

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.errors import ConfigError, DeviceError, StaleData, VlaError
from vla_ros.robots.kinematics import Kinematics, displaced, pose_error, pose_matrix, pose_vector
from vla_ros.robots.kinova import Kinova
from vla_ros.robots.kortex import codes, motion
from vla_ros.robots.kortex.messages import new
from vla_ros.robots.kortex.session import Login, Session
from vla_ros.robots.kortex.wire import Reply, TcpTransport, pack_request, unpack
from vla_ros.sim.kortex_box import KortexBox
from vla_ros.sim.kortex_twist import TwistKinematics
from vla_ros.sim.plant import KinematicPlant

KINEMATICS = Kinematics(ROBOT)
TURN = 0.5 * np.eye(7)[6]
TWIST, SPEEDS = codes.SEND_TWIST.number, codes.SEND_JOINT_SPEEDS.number
FAULTS = {
    "error_frame": (DeviceError, "fault", "SendTwistCommand refused: ERROR_DEVICE, METHOD_FAILED"),
    "arm_fault": (DeviceError, "fault", "joint 3 MAXIMUM_TORQUE|ROBOT_IN_FAULT"),
    "link_cut": (StaleData, "link_lost", "closed the connection|refused"),
}


class SteppedBox:
    """A simulated base without sockets or threads: `send` hands it a command, `step` lets its time pass."""

    def __init__(self):
        self.plant = KinematicPlant(ROBOT)
        self.box = KortexBox(self.plant, {"address": "127.0.0.1"})
        info = {"session_inactivity_timeout": 60_000, "connection_inactivity_timeout": 60_000}
        login = new("CreateSessionInfo", username="admin", password="admin", **info)
        self.session = unpack(self.box._handle(pack_request(1, 1, 0, 1, login.SerializeToString()), "tcp")).session

    def send(self, wanted: motion.Motion, frame: int = codes.BASE_FRAME) -> Reply:
        message = wanted.message()
        if wanted.function == codes.SEND_TWIST:
            message.reference_frame = frame
        request = pack_request(wanted.function.service, wanted.function.number, self.session, 2, message.SerializeToString())
        return unpack(self.box._handle(request, "tcp"))

    def step(self, seconds: float) -> np.ndarray:
        """Returns T_base_tcp [4, 4] after."""
        for _ in range(round(seconds / 0.002)):
            self.box.step(0.002)
            self.plant.step(0.002)
        return KINEMATICS.forward(self.plant.measure().position)


@pytest.fixture(scope="module")
def base():
    with KinovaBox(f"127.0.{os.getpid() % 200 + 20}.12") as base:
        yield base


@pytest.fixture
def heard(base, monkeypatch) -> list[int]:
    """The numbers of the commands to move that the base gets."""
    heard = []
    for key in ((2, TWIST), (2, SPEEDS)):
        function = base.box._functions[key]
        monkeypatch.setitem(base.box._functions, key, lambda request, f=function, n=key[1]: heard.append(n) or f(request))
    return heard


@pytest.fixture
def arm(base):
    """At home, then led by twists."""
    arm = Kinova(ROBOT, base.address, control="twist", **PATIENT)
    arm.connect()
    drive(arm, POSITIONS, lambda: HOME, lambda: np.abs(arm.read().position - HOME).max() < 0.003)
    yield arm
    arm.close()


def tcp_of(arm: Kinova) -> np.ndarray:
    return KINEMATICS.tcp(arm.read().position)


def rise_m_s(arm: Kinova) -> float:
    state = arm.read()
    return float(KINEMATICS.jacobian(state.position)[2] @ state.velocity)


def lifted(arm: Kinova, by_m: float) -> np.ndarray:
    """A target above the tool, which keeps its orientation."""
    return tcp_of(arm) + np.array([0.0, 0.0, by_m, 0.0, 0.0, 0.0])


# The simulated base.


@pytest.mark.parametrize("axis", range(6), ids=["x", "y", "z", "rx", "ry", "rz"])
def test_a_twist_moves_the_tool_along_and_about_the_axes_of_the_base(axis):
    base = SteppedBox()
    twist = (0.1 if axis < 3 else 0.4) * np.eye(6)[axis]
    assert base.send(motion.twist(twist)).error == 0
    before, after = base.step(0.2), base.step(0.2)  # the first while, it gathers speed
    np.testing.assert_allclose(pose_error(after, before), 0.2 * twist, atol=1e-3)


def test_joint_speeds_take_over_from_a_twist_within_the_accelerations():
    base = SteppedBox()
    base.send(motion.twist(0.1 * np.eye(6)[2]))
    base.step(0.2)
    velocities = [base.plant.measure().velocity]
    assert np.abs(velocities[0]).max() > 0.1
    assert base.send(motion.joint_speeds(TURN)).error == 0
    for _ in range(30):
        base.step(0.01)
        velocities.append(base.plant.measure().velocity)
    np.testing.assert_allclose(velocities[-1], TURN, atol=1e-3)
    assert np.abs(np.diff(velocities, axis=0)).max() < 0.11  # 10 rad/s^2 are the small actuators' limit


def test_a_twist_in_another_frame_or_without_end_is_refused():
    base = SteppedBox()
    start = base.step(0.1)
    for frame in (0, 1, 2):
        assert base.send(motion.twist(0.1 * np.eye(6)[0]), frame).sub_error == 3  # INVALID_PARAM
    assert base.send(motion.twist(np.full(6, np.nan))).sub_error == 3
    np.testing.assert_array_equal(base.step(0.1), start)


def test_too_fast_a_twist_is_slowed_down_to_what_the_base_does():
    base = SteppedBox()
    base.send(motion.twist(2.0 * np.eye(6)[2]))
    before, after = base.step(0.25), base.step(0.1)
    way = pose_error(after, before)
    assert 0.03 < way[2] <= 0.05 + 1e-6  # 0.5 m/s, less where a joint cannot keep up
    np.testing.assert_allclose(np.delete(way, 2), 0.0, atol=2e-3)


def test_a_joint_on_its_limit_is_left_out():
    low, high = HOME - 3.0, HOME + 3.0
    sideways = 0.1 * np.eye(6)[1]  # four joints turn about upright axes, three would do
    free = TwistKinematics(ROBOT, low, high).speeds(HOME, sideways)
    joint = int(np.abs(free).argmax())
    (low if free[joint] < 0 else high)[joint] = HOME[joint]
    speeds = TwistKinematics(ROBOT, low, high).speeds(HOME, sideways)
    assert abs(free[joint]) > 0.05 and speeds[joint] == 0.0
    np.testing.assert_allclose(KINEMATICS.jacobian(HOME) @ speeds, sideways, atol=0.01)


# The driver.


def test_tcp_poses_are_reached_by_twists_alone(arm, heard):
    target = pose_vector(displaced(KINEMATICS.forward(HOME), np.array([0.04, -0.05, 0.06, 0.1, 0.15, -0.3])))

    def away() -> np.ndarray:
        return np.abs(pose_error(pose_matrix(target), pose_matrix(tcp_of(arm))))

    heard.clear()
    drive(arm, TCP_POSE, lambda: target, lambda: away()[:3].max() < 0.002 and away()[3:].max() < 0.01)
    assert set(heard) == {TWIST}


def test_the_way_is_limited_to_what_the_tool_may_do(arm):
    start, far = tcp_of(arm), lifted(arm, 0.2)
    executed = command(arm, TCP_POSE, far).data
    assert executed[2] - start[2] == pytest.approx(ROBOT.tcp_velocity_max_m_s / 6.0, abs=2e-3)  # 6 per second, the gain
    arm.stop()
    near = lifted(arm, 0.02)
    np.testing.assert_array_equal(command(arm, TCP_POSE, near).data, near)


def test_stop_ends_a_twist_from_full_speed(arm):
    took_ns = []
    for way_m in (0.06, -0.06, 0.06):  # the best of three: a busy machine may starve the simulator once
        drive(arm, TCP_POSE, lambda way_m=way_m: lifted(arm, way_m), lambda way_m=way_m: rise_m_s(arm) / way_m > 4.0)
        begun_ns = time.time_ns()
        arm.stop()
        state = wait_for(lambda: standing(arm) and arm.read(), "standing after stop()")
        took_ns.append(state.stamp_ns - begun_ns)
    assert min(took_ns) < 200_000_000


def test_an_arm_that_gets_no_more_targets_stops_by_itself(arm, heard):
    drive(arm, TCP_POSE, lambda: lifted(arm, 0.05), lambda: rise_m_s(arm) > 0.2)
    wait_for(lambda: standing(arm), "standing without stop()")
    assert heard[-1] == TWIST


def test_the_base_stops_a_twist_whose_computer_died(base):
    session = Session(TcpTransport(base.address, 10000, 1.0), "test", Login("admin", "admin", 10.0, 0.2), 1.0)
    wanted = motion.twist(0.05 * np.eye(6)[2])
    session.call(wanted.function, wanted.message())
    wait_for(lambda: np.abs(base.plant.measure().velocity).max() > 0.03, "motion")
    wait_for(lambda: np.abs(base.plant.measure().velocity).max() < 1e-3, "standing without a frame from the client")
    session.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_twist_are_named_end_in_hold_and_recover(arm, base, fault):
    kind, reason, words = FAULTS[fault]
    start, goal = tcp_of(arm), lifted(arm, 0.08)
    drive(arm, TCP_POSE, lambda: goal, lambda: rise_m_s(arm) > 0.2)
    base.box.inject(fault)
    try:

        def fails() -> VlaError | None:
            time.sleep(PERIOD_S)
            return error_of(arm, goal, TCP_POSE)

        error = wait_for(fails, f"an error after {fault}")
        assert isinstance(error, kind) and error.reason == reason, repr(error)
        assert any(word in str(error) for word in words.split("|")), str(error)
        arm.stop()
        wait_for(lambda: np.abs(base.plant.measure().velocity).max() < 1e-3, "the arm stands")
        held = base.plant.measure().position
    finally:
        base.box.clear()
    arm.recover()
    np.testing.assert_allclose(arm.read().position, held, atol=1e-3)
    drive(arm, TCP_POSE, lambda: start, lambda: rise_m_s(arm) < -0.1)


def test_targets_change_their_kind_in_motion(arm, heard):
    heard.clear()
    drive(arm, TCP_POSE, lambda: lifted(arm, 0.05), lambda: rise_m_s(arm) > 0.2)
    drive(arm, VELOCITIES, lambda: TURN, lambda: np.abs(arm.read().velocity - TURN).max() < 0.02)
    drive(arm, TCP_POSE, lambda: lifted(arm, -0.05), lambda: rise_m_s(arm) < -0.2)
    assert [number for number, _ in groupby(heard)] == [TWIST, SPEEDS, TWIST]
    arm.stop()
    wait_for(lambda: standing(arm), "standing after stop()")


def test_options_that_the_driver_or_the_base_does_not_have_are_named():
    with pytest.raises(ConfigError, match="control: 'twists'; did you mean 'twist'"):
        Kinova(ROBOT, "127.0.0.1", control="twists")
    with pytest.raises(ConfigError, match=r"tcp_rotation_max_rad_s = 2.5, the base takes 1.745 at most"):
        Kinova(replace(ROBOT, tcp_rotation_max_rad_s=2.5), "127.0.0.1", control="twist")
