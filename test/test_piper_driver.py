"""The PiPer driver, through the real piper_sdk, against the emulated arm on slcan over TCP."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from driving import command, wait_for

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError, DeviceError, StaleData
from vla_ros.robots import piper_can
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.piper import Piper
from vla_ros.sim.piper_bus import PiperBus
from vla_ros.sim.plant import KinematicPlant

ROBOT = load_embodiment("piper").robots["arm"]
HOME = np.array(ROBOT.home_rad)
POSITIONS = tuple(f"{joint}.position" for joint in ROBOT.joints)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)
CAN = f"socket://127.0.{os.getpid() % 200 + 20}.12:29536"
PERIOD_S, STEP_S = 0.02, 0.002
REST_RAD_S = 0.02
STALE_S = 0.3  # a busy machine starves the emulator; that is not the driver's fault


class Device:
    """Emulated arm, its plant stepped in real time by a thread."""

    def __init__(self) -> None:
        self.plant = KinematicPlant(ROBOT)
        self.bus = PiperBus(self.plant, {"can": CAN})
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bus.start()
        self._thread.start()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._closing.is_set():
            due_s = max(due_s + STEP_S, time.monotonic() - 0.1)
            self.bus.step(STEP_S)
            self.plant.step(STEP_S)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self.bus.close()


@pytest.fixture(scope="module")
def device():
    device = Device()
    yield device
    device.close()


@pytest.fixture(scope="module")
def connected(device):
    arm = Piper(ROBOT, CAN, stale_after_s=STALE_S, timeout_s=1.0)
    arm.connect()
    yield arm
    arm.close()


@pytest.fixture
def arm(connected, device):
    """At home, healthy."""
    device.bus.clear()
    connected.recover()
    wait_for(lambda: at_home(connected), "home")
    connected.stop()
    wait_for(lambda: standing(connected), "standing at home")
    return connected


def at_home(arm: Piper) -> bool:
    command(arm, POSITIONS, HOME)
    return np.abs(arm.read().position - HOME).max() < 0.003


def standing(arm: Piper) -> bool:
    return np.abs(arm.read().velocity).max() < 0.01


def stream(arm: Piper, channels: tuple[str, ...], target, duration_s: float) -> None:
    """Sends target(elapsed s) every 20 ms."""
    begun_s = time.monotonic()
    while (elapsed_s := time.monotonic() - begun_s) < duration_s:
        command(arm, channels, target(elapsed_s))
        time.sleep(PERIOD_S)


def error_of(arm: Piper) -> StaleData | DeviceError | None:
    """What a command that moves joint 1 raises."""
    try:
        command(arm, VELOCITIES, [0.5, 0, 0, 0, 0, 0])
    except (StaleData, DeviceError) as error:
        return error
    return None


def test_reads_fresh_measurements(arm, device):
    state = arm.read()
    assert state.joint_names == ROBOT.joints
    np.testing.assert_allclose(state.position, HOME, atol=0.004)
    np.testing.assert_allclose(state.position, device.plant.measure().position, atol=1e-4)
    newer = wait_for(lambda: (new := arm.read()).stamp_ns > state.stamp_ns and new, "a newer measurement")
    assert 0 <= time.time_ns() - newer.stamp_ns < 100_000_000


def test_the_newest_target_is_always_sent(arm, device, monkeypatch):
    """Even when the sending thread takes its turn in the middle of setting the next one."""
    rint = np.rint
    monkeypatch.setattr(np, "rint", lambda value: (time.sleep(0.001), rint(value))[1])
    for i in range(100):
        target = HOME + np.array([1e-3 * (i % 10), 0, 0, 0, 0, 0])
        arm._link.move(target)
    wait_for(lambda: np.abs(device.bus._controller._asked - target).max() < 1e-4, "the last target at the arm", 2.0)


def test_joint_positions_are_followed(arm):
    target = HOME + np.array([0.2, 0.1, -0.1, 0.1, -0.1, 0.3])
    stream(arm, POSITIONS, lambda t: HOME + (target - HOME) * min(1.0, 2 * t), 1.0)
    np.testing.assert_allclose(arm.read().position, target, atol=0.01)


def test_joint_velocities_are_followed(arm):
    stream(arm, VELOCITIES, lambda _: [0.4, 0, 0, 0, 0, -0.4], 0.5)
    state = arm.read()
    np.testing.assert_allclose(state.velocity[[0, 5]], [0.4, -0.4], atol=0.15)
    assert 0.1 < state.position[0] < 0.3


def test_tcp_poses_are_followed(arm):
    kinematics = Kinematics(ROBOT)
    start = kinematics.tcp(HOME)
    stream(arm, TCP_POSE, lambda t: start + np.array([0.03, 0.05, -0.04, 0, 0, 0]) * min(1.0, 1.5 * t), 1.2)
    np.testing.assert_allclose(kinematics.tcp(arm.read().position)[:3], start[:3] + np.array([0.03, 0.05, -0.04]), atol=0.004)


def test_the_gripper_takes_widths_and_closed(arm):
    command(arm, (*POSITIONS, "gripper.width"), [*HOME, 0.02])
    wait_for(lambda: arm.read().gripper_width_m == pytest.approx(0.02, abs=0.001), "20 mm")
    command(arm, (*POSITIONS, "gripper.closed"), [*HOME, 0.5])  # between the thresholds: stays
    command(arm, (*POSITIONS, "gripper.closed"), [*HOME, 0.0])
    wait_for(lambda: arm.read().gripper_width_m > 0.069, "open")
    command(arm, (*POSITIONS, "gripper.closed"), [*HOME, 1.0])
    wait_for(lambda: arm.read().gripper_width_m < 0.001, "closed")


def test_the_gripper_has_the_embodiments_force(arm, device):
    command(arm, (*POSITIONS, "gripper.width"), [*HOME, 0.03])
    wait_for(lambda: device.plant.measure().gripper_force_n == pytest.approx(ROBOT.gripper.force_n), "force")


def test_what_is_too_fast_is_slowed_and_told(arm):
    far = HOME + np.array([2.0, 0, 0, 0, 0, 0])
    executed = command(arm, POSITIONS, far)
    assert 0.0 < executed.data[0] < 0.5
    np.testing.assert_allclose(command(arm, VELOCITIES, [5.0, 0, 0, 0, 0, 0]).data, [2.0, 0, 0, 0, 0, 0])


def test_a_joint_limit_is_never_crossed(arm, device):
    stream(arm, VELOCITIES, lambda _: [0, 0, 0, 0, 2.0, 0], 1.0)
    assert ROBOT.position_max_rad[4] - 0.05 < device.plant.measure().position[4] < ROBOT.position_max_rad[4] + 1e-3
    assert device.bus._controller.status[1] == 0, "the arm saw a target beyond its limit"


@pytest.mark.parametrize("speed", [0.4, -0.6])
def test_stop_comes_to_rest_once_and_stays(arm, device, speed):
    stream(arm, VELOCITIES, lambda _: [speed, 0, 0, 0, 0, 0], 0.4)
    begun_s, at = time.monotonic(), arm.read().position[0]
    arm.stop()
    wait_for(lambda: np.abs(device.plant.measure().velocity).max() < REST_RAD_S, "at rest")
    assert time.monotonic() - begun_s < 0.2
    again = []
    for _ in range(100):
        arm.stop()
        again.append(np.abs(device.plant.measure().velocity).max())
        time.sleep(STEP_S)
    assert max(again) < 0.05, "moved again"
    held = arm.read().position
    assert abs(held[0] - at) < 0.06, "0.6 rad/s are 0.036 rad of braking"
    time.sleep(0.2)
    np.testing.assert_allclose(arm.read().position, held, atol=1e-3)


def test_an_arm_that_a_simulator_has_put_elsewhere_stays_there(arm, device):
    """Nothing that the driver or the arm remembers brings it back; the next command starts from there."""
    stream(arm, VELOCITIES, lambda _: [0.4, 0, 0, 0, 0, 0], 0.2)
    arm.stop()
    wait_for(lambda: standing(arm), "holding")
    elsewhere = HOME + np.array([-0.3, 0.2, -0.2, 0.3, 0.1, -0.4])
    device.plant.place(elsewhere)
    device.bus.rest()
    for _ in range(30):
        arm.stop()
        time.sleep(0.01)
    np.testing.assert_allclose(device.plant.measure().position, elsewhere, atol=1e-3)
    command(arm, VELOCITIES, [0.2, 0, 0, 0, 0, 0])
    time.sleep(0.1)
    np.testing.assert_allclose(device.plant.measure().position, elsewhere, atol=0.01)
    stream(arm, VELOCITIES, lambda _: [0.2, 0, 0, 0, 0, 0], 0.3)
    moved = device.plant.measure().position - elsewhere
    assert 0.02 < moved[0] < 0.1
    np.testing.assert_allclose(moved[1:], 0.0, atol=2e-3)


def test_the_arm_stays_when_commands_end(arm):
    stream(arm, VELOCITIES, lambda _: [0.5, 0, 0, 0, 0, 0], 0.3)
    wait_for(lambda: standing(arm), "standing without stop()")


@pytest.mark.parametrize("fault", ["silent", "slow", "garbage", "bad_frames", "link_cut"])
def test_a_lost_link_is_told_and_comes_back(arm, device, fault):
    device.bus.inject(fault)
    error = wait_for(lambda: error_of(arm), f"an error after {fault}")
    assert isinstance(error, StaleData)
    assert error.reason == "link_lost"
    arm.stop()
    with pytest.raises(DeviceError):
        arm.recover()
    device.bus.clear()
    recovers(arm)


def recovers(arm: Piper) -> None:
    def recovered() -> bool:
        try:
            arm.recover()
        except DeviceError:
            return False
        return True

    wait_for(recovered, "recovery")
    before = arm.read().position[0]
    stream(arm, VELOCITIES, lambda _: [-0.5, 0, 0, 0, 0, 0], 0.2)
    assert arm.read().position[0] < before - 0.03


def test_unreadable_frames_are_counted_in_the_error(arm, device):
    device.bus.inject("garbage")
    error = wait_for(lambda: error_of(arm), "an error")
    assert "unreadable frames" in str(error)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("estop", "emergency stop"),
        ("joint_comm", r"does not answer \(joint 3\)"),
        ("brake", "brake is not released"),
        ("collision", "collision"),
        ("limit", r"joint limit \(joint 1\)"),
        ("motor_disabled", "joint 4 is disabled"),
    ],
)
def test_a_fault_of_the_arm_is_named_until_recovery(arm, device, fault, words):
    stream(arm, VELOCITIES, lambda _: [0.5, 0, 0, 0, 0, 0], 0.2)
    device.bus.inject(fault)
    error = wait_for(lambda: error_of(arm), f"an error after {fault}")
    assert error.reason == fault
    with pytest.raises(DeviceError, match=words):
        raise error
    arm.stop()
    wait_for(lambda: np.abs(device.plant.measure().velocity).max() < 0.01, "standing")
    device.bus.clear()
    if fault != "limit":  # this one ends with the next good target, that of stop()
        assert error_of(arm).reason == fault, "gone without recovery"
    arm.recover()
    recovers(arm)


def test_what_is_still_there_cannot_be_recovered(device, arm):
    device.bus.inject("estop")
    wait_for(lambda: error_of(arm), "an error")
    with pytest.raises(DeviceError, match="emergency stop stays") as raised:
        arm.recover()
    assert raised.value.reason == "estop"


def test_repeated_measurements_are_told_while_the_arm_should_move(arm, device):
    device.bus.inject("frozen")
    time.sleep(0.05)
    assert arm.read().position is not None
    error = wait_for(lambda: (time.sleep(PERIOD_S), error_of(arm))[1], "an error")
    assert error.reason == "frozen"
    wait_for(lambda: np.abs(device.plant.measure().velocity).max() < 0.01, "standing")
    there = device.plant.measure().position
    arm.stop()
    time.sleep(0.1)
    np.testing.assert_allclose(device.plant.measure().position, there, atol=1e-3, err_msg="went back to what it no longer believes")
    device.bus.clear()
    recovers(arm)


def test_a_flood_of_frames_gives_the_newest(arm, device):
    device.bus.inject("flood")
    stream(arm, VELOCITIES, lambda _: [0.5, 0, 0, 0, 0, 0], 0.5)
    assert abs(device.plant.measure().position[0] - arm.read().position[0]) < 0.05


def test_an_arm_with_its_stop_pressed_can_be_read(device, arm):
    arm.close()
    device.bus.inject("estop")
    arm.connect()
    assert arm.read().position.shape == (6,)
    assert error_of(arm).reason == "estop"
    device.bus.clear()
    arm.recover()
    recovers(arm)


def test_close_leaves_no_thread_and_the_drives_enabled(arm, device):
    arm.close()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == f"piper {CAN}"], "no thread left", 3.0)
    assert all(device.bus._controller.drives)
    arm.close()
    with pytest.raises(DeviceError, match="not connected"):
        arm.read()
    arm.connect()


def test_missing_joints_are_named(arm):
    with pytest.raises(DataError, match=r"joint6\.position is missing"):
        command(arm, POSITIONS[:5], HOME[:5])


def test_nobody_there_is_told_with_the_address():
    arm = Piper(ROBOT, "socket://127.0.0.250:29536")
    with pytest.raises(DeviceError, match=r"127\.0\.0\.250"):
        arm.connect()
    arm.stop()
    arm.close()


def test_a_bus_without_an_arm_is_told(device, arm):
    device.bus.inject("silent")
    other = Piper(ROBOT, CAN, timeout_s=0.2)
    arm.close()
    with pytest.raises(DeviceError, match=r"nothing heard of 0x2A1.*within 0.2 s; is the arm on"):
        other.connect()
    device.bus.clear()
    arm.connect()


def test_socketcan_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(piper_can, "_SYSFS", tmp_path)
    with pytest.raises(DeviceError, match=r"no CAN interface can7 .there is: none.*sudo ip link set can7 up type can bitrate 1000000"):
        Piper(ROBOT, "can7").connect()
    (tmp_path / "can7").mkdir()
    (tmp_path / "can7" / "operstate").write_text("down\n")
    with pytest.raises(DeviceError, match="can7 is down; sudo ip link set can7 up"):
        Piper(ROBOT, "can7").connect()


@pytest.mark.parametrize("options", [{"speed_percent": 0}, {"gripper_torque_nm": 6.0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Piper(ROBOT, CAN, **options)
    with pytest.raises(ConfigError, match="5 joints, a PiPer has 6"):
        Piper(replace(ROBOT, joints=ROBOT.joints[:5]), CAN)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("vla_ros.robots.piper").setLevel(logging.ERROR)
