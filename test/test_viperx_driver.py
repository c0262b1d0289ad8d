"""The ViperX driver and dynamixel-sdk against emulated servos on a pseudo-terminal, at the real bus's speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from driving import command, wait_for

from vla_ros.core.channels import TCP_POSE
from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DataError, DeviceError, StaleData
from vla_ros.robots.dynamixel_bus import DynamixelBus, latency_timer_ms
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.viperx import ViperX
from vla_ros.robots.viperx_clock import ServoClock
from vla_ros.robots.viperx_servos import GRIPPER, JOINT_SERVOS, SHADOWS, Linkage
from vla_ros.sim import dynamixel_servo as registers
from vla_ros.sim.dynamixel_servos import DynamixelServos
from vla_ros.sim.fingers import Fingers
from vla_ros.sim.plant import KinematicPlant

ROBOT = load_embodiment("aloha").robots["left"]
HOME = np.array(ROBOT.home_rad)
POSITIONS = tuple(f"{joint}.position" for joint in ROBOT.joints)
VELOCITIES = tuple(f"{joint}.velocity" for joint in ROBOT.joints)
PERIOD_S, STEP_S = 0.02, 0.002


class Servos:
    """Context manager: the firmware over a plant without physics, stepped in real time by a thread."""

    def __init__(self, port: Path) -> None:
        self.plant = KinematicPlant(ROBOT)
        self.firmware = DynamixelServos(self.plant, {"port": str(port)})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._step, daemon=True)

    def __enter__(self) -> Servos:
        self.firmware.start()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        self.firmware.close()

    def table(self, servo: int, address: int, length: int = 1) -> int:
        return self.firmware.servos[servo].get(address, length, signed=length == 4)

    def torques(self) -> list[bool]:
        return [servo.torque for servo in self.firmware.servos.values()]

    def _step(self) -> None:
        due_s = time.monotonic()
        while not self._ended.is_set():
            self.firmware.step(STEP_S)
            self.plant.step(STEP_S)
            due_s = max(due_s + STEP_S, time.monotonic() - 0.05)
            time.sleep(max(0.0, due_s - time.monotonic()))


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("viperx") / "port"


@pytest.fixture(scope="module")
def servos(port) -> Iterator[Servos]:
    with Servos(port) as servos:
        yield servos


@pytest.fixture(scope="module")
def connection(servos, port) -> Iterator[ViperX]:
    with closing(ViperX(ROBOT, str(port), stale_after_s=0.2)) as arm:
        arm.connect()
        yield arm


@pytest.fixture
def arm(connection, servos) -> ViperX:
    """Connected and without a fault, whatever the last test left."""
    servos.firmware.clear()
    wait_for(lambda: recovered(connection), "recovery")
    wait_for(lambda: standing(connection), "standing")
    return connection


def recovered(arm: ViperX) -> bool:
    try:
        arm.connect()
        arm.recover()
    except DeviceError:
        return False
    return True


def fresh(arm: ViperX) -> bool:
    try:
        arm.read()
    except (StaleData, DeviceError):
        return False
    return True


def stream(arm: ViperX, channels: tuple[str, ...], target: Callable[[float], np.ndarray], duration_s: float) -> list:
    """Sends target(elapsed s) every 20 ms; returns [(elapsed at the measurement, state)]."""
    begun_ns, seen = time.time_ns(), []
    while (elapsed_s := (time.time_ns() - begun_ns) * 1e-9) < duration_s:
        command(arm, channels, target(elapsed_s))
        state = arm.read()
        seen.append(((state.stamp_ns - begun_ns) * 1e-9, state))
        time.sleep(PERIOD_S)
    return seen


def standing(arm: ViperX) -> bool:
    return np.abs(arm.read().velocity).max() < 0.03


def refusal(arm: ViperX) -> DeviceError | StaleData | None:
    try:
        command(arm, VELOCITIES, np.zeros(6))
    except (DeviceError, StaleData) as error:
        return error
    return None


# Set-up.


def test_servos_are_set_up(arm, servos):
    assert [servos.table(servo, registers.OPERATING_MODE) for servo in (*JOINT_SERVOS, GRIPPER)] == [3, 3, 3, 3, 3, 3, 5]
    assert {servo: servos.table(servo, registers.SECONDARY_ID) for servo in SHADOWS} == SHADOWS
    # reversed where the motor is mounted the other way round, and the profile is a time
    assert [servos.table(servo, registers.DRIVE_MODE) for servo in range(1, 10)] == [4, 5, 4, 5, 4, 4, 5, 4, 4]
    assert [servos.table(servo, registers.RETURN_DELAY) for servo in range(1, 10)] == [0] * 9
    assert servos.table(7, registers.MIN_POSITION, 4) == round(2048 - 1.86 * 4096 / 2 / np.pi)
    assert servos.torques() == [True] * 9


def test_what_it_reads_is_what_the_arm_does(arm, servos):
    state = arm.read()
    assert state.joint_names == ROBOT.joints
    np.testing.assert_allclose(state.position, servos.plant.measure().position, atol=1e-3)
    newer = wait_for(lambda: (new := arm.read()).stamp_ns > state.stamp_ns and new, "a newer measurement")
    assert 0 <= time.time_ns() - newer.stamp_ns < 100_000_000


def test_connecting_to_an_arm_that_holds_does_not_let_go(port, servos, arm):
    arm.close()
    assert all(servos.torques()), "closing took the torque"
    log = []
    watch = threading.Event()
    watcher = threading.Thread(target=lambda: [log.append(all(servos.torques())) or time.sleep(0.0005) for _ in iter(watch.is_set, True)])
    watcher.start()
    arm.connect()
    watch.set()
    watcher.join()
    assert len(log) > 20
    assert all(log)


def test_settings_that_would_drop_the_arm_are_refused(port, servos, arm):
    arm.close()
    other = ViperX(replace(ROBOT, position_max_rad=(3.0, *ROBOT.position_max_rad[1:])), str(port))
    with pytest.raises(DeviceError, match=r"servo 1 \(waist\) holds the arm.*registers 48.*switch its power off and on"):
        other.connect()
    assert all(servos.torques())
    other.close()


def test_a_shadow_that_reads_another_angle_is_aligned(tmp_path):
    with Servos(tmp_path / "port") as servos:
        servos.firmware.servos[5].write(registers.HOMING_OFFSET, (150).to_bytes(4, "little"))
        with closing(ViperX(ROBOT, str(tmp_path / "port"))) as arm:
            arm.connect()
            assert abs(servos.table(5, registers.HOMING_OFFSET, 4)) <= 1


# Motion.


@pytest.mark.parametrize("joint", range(6))
def test_every_joint_moves_the_right_way(arm, servos, joint):
    start = arm.read().position
    target = start + 0.1 * np.eye(6)[joint] * (-1 if start[joint] > HOME[joint] else 1)
    stream(arm, POSITIONS, lambda _: target, 0.4)
    wait_for(lambda: standing(arm), "standing")
    np.testing.assert_allclose(servos.plant.measure().position, target, atol=0.01)


def test_joint_velocities(arm, servos):
    start = servos.plant.measure().position
    stream(arm, VELOCITIES, lambda _: 0.4 * np.eye(6)[5], 0.5)
    arm.stop()
    moved = servos.plant.measure().position - start
    assert 0.15 < moved[5] < 0.25
    assert np.abs(moved[:5]).max() < 0.005


def test_tcp_poses(arm, servos):
    kinematics = Kinematics(ROBOT)
    start = kinematics.tcp(arm.read().position)
    stream(arm, TCP_POSE, lambda _: start + np.array([0.03, -0.02, 0.02, 0, 0, 0]), 0.8)
    reached = kinematics.tcp(servos.plant.measure().position)
    np.testing.assert_allclose(reached[:3], start[:3] + np.array([0.03, -0.02, 0.02]), atol=0.004)


def test_a_sine_is_tracked(arm):
    start = arm.read().position

    def target(elapsed_s: float) -> np.ndarray:
        return start + 0.2 * np.sin(2 * np.pi * 0.4 * elapsed_s)

    errors = [np.abs(state.position - target(max(0.0, at_s))).max() for at_s, state in stream(arm, POSITIONS, target, 1.5)]
    assert np.mean(errors) < 0.03, f"{np.mean(errors):.4f} rad"


def test_too_fast_is_slowed_and_told(arm):
    executed = command(arm, VELOCITIES, [5.0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(executed.data, [2.0, 0, 0, 0, 0, 0])
    arm.stop()


def test_stop_holds_where_it_is_and_keeps_the_torque(arm, servos):
    for speed in (1.0, -1.0):
        stream(arm, VELOCITIES, lambda _: speed * np.eye(6)[5], 0.3)  # noqa: B023
        at = servos.plant.measure().position
        for _ in range(3):
            arm.stop()
        wait_for(lambda: standing(arm), "standing")
        assert np.abs(servos.plant.measure().position - at).max() < 0.06
    assert all(servos.torques())


def test_the_gripper_closes_with_its_force_and_opens(arm, servos):
    here = arm.read().position
    command(arm, (*POSITIONS, "gripper.closed"), [*here, 1.0])
    wait_for(lambda: arm.read().gripper_width_m < 0.002, "closed")
    assert servos.plant.measure().gripper_force_n == pytest.approx(ROBOT.gripper.force_n, rel=0.02)
    command(arm, (*POSITIONS, "gripper.width"), [*here, 0.05])
    wait_for(lambda: abs(arm.read().gripper_width_m - 0.05) < 0.001, "5 cm")
    command(arm, (*POSITIONS, "gripper.closed"), [*here, 0.5])  # neither open nor closed: stays
    arm.stop()
    command(arm, (*POSITIONS, "gripper.closed"), [*here, 0.0])
    wait_for(lambda: arm.read().gripper_width_m > 0.077, "open")


def test_missing_joints_are_named(arm):
    with pytest.raises(DataError, match=r"wrist_rotate\.position is missing"):
        command(arm, POSITIONS[:5], HOME[:5])


# Faults: named, at rest, back again.

FAULTS = {
    "overload": ("overload", r"servo 4 \(elbow\): overload"),
    "overheating": ("overheating", r"servo 4 \(elbow\): overheating"),
    "voltage": ("voltage", r"servo 4 \(elbow\): voltage"),
    "torque_lost": ("torque_lost", r"servo 4 \(elbow\) has no torque"),
    "limit": ("blocked", r"servo 8 \(wrist_rotate\) stands 0\.2"),
    "silent": ("link_lost", "no servo measured anew.*no answer"),
    "one_servo_dead": ("link_lost", r"servo 4 \(elbow\) measured anew.*no answer"),
    "bad_crc": ("link_lost", "corrupt answer"),
    "garbage": ("link_lost", "no servo measured anew"),
    "frozen": ("link_lost", "old by its own clock"),
    "slow": ("link_lost", "measured anew for 0.2 s"),
    "unplugged": ("link_lost", "is the adapter unplugged"),
}


def test_the_list_of_faults_is_complete():
    assert set(FAULTS) == set(DynamixelServos.FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_stop_the_arm_and_end_with_recovery(arm, servos, fault):
    reason, message = FAULTS[fault]
    direction = -1.0 if arm.read().position[5] > 0 else 1.0
    stream(arm, VELOCITIES, lambda _: 0.5 * direction * np.eye(6)[5], 0.2)
    servos.firmware.inject(fault)

    def told() -> DeviceError | StaleData | None:
        time.sleep(PERIOD_S)
        try:
            command(arm, VELOCITIES, 0.5 * direction * np.eye(6)[5])
        except (DeviceError, StaleData) as error:
            return error
        return None

    error = wait_for(told, fault)
    at_s = time.monotonic()
    assert error.reason == reason
    with pytest.raises(type(error), match=message):
        raise error
    arm.stop()
    wait_for(lambda: np.abs(servos.plant.measure().velocity).max() < 0.02, "at rest")
    assert time.monotonic() - at_s < 0.2
    assert refusal(arm).reason == reason, "it latches"
    servos.firmware.clear()
    arm.recover()
    assert all(servos.torques())
    before = arm.read().position
    stream(arm, VELOCITIES, lambda _: -0.5 * direction * np.eye(6)[5], 0.2)
    assert abs(arm.read().position[5] - before[5]) > 0.03


def test_a_dead_servo_is_named_when_connecting(tmp_path):
    with Servos(tmp_path / "port") as servos:
        servos.firmware.inject("one_servo_dead")
        arm = ViperX(ROBOT, str(tmp_path / "port"), timeout_s=0.01)
        with pytest.raises(DeviceError, match=r"servo 4 \(elbow\) not answering"):
            arm.connect()
        with pytest.raises(DeviceError, match="not connected"):
            arm.read()
        servos.firmware.clear()
        servos.firmware.inject("silent")
        with pytest.raises(DeviceError, match="no servo answers; is the arm's power on"):
            arm.connect()
        servos.firmware.clear()
        arm.recover()
        arm.close()
        arm.close()


@pytest.mark.parametrize("fault", ["frozen", "slow"])
def test_servos_that_answer_but_do_not_measure_are_not_connected_to(arm, servos, fault):
    servos.firmware.inject(fault)
    wait_for(lambda: not fresh(arm), "a lost link")
    for _ in range(4):
        with pytest.raises(DeviceError) as raised:
            arm.recover()
        assert raised.value.reason in ("link_lost", "device")
        if fault == "frozen":
            assert "does not measure anew: its clock went 0.000 s" in str(raised.value)
    servos.firmware.clear()
    wait_for(lambda: recovered(arm), "recovery")
    assert fresh(arm)


def test_an_arm_that_a_simulator_has_put_elsewhere_stays_there(arm, servos):
    """Nothing that the driver or the servos remember brings it back; the next command starts from there."""
    stream(arm, VELOCITIES, lambda _: 0.4 * np.eye(6)[0], 0.2)
    arm.stop()
    wait_for(lambda: standing(arm), "holding")
    elsewhere = HOME + np.array([-0.3, 0.2, -0.2, 0.3, 0.1, -0.4])
    servos.plant.place(elsewhere)
    servos.firmware.rest()
    for _ in range(30):
        arm.stop()
        time.sleep(0.01)
    np.testing.assert_allclose(servos.plant.measure().position, elsewhere, atol=0.004)
    command(arm, VELOCITIES, 0.2 * np.eye(6)[0])
    time.sleep(0.1)
    np.testing.assert_allclose(servos.plant.measure().position, elsewhere, atol=0.01)
    stream(arm, VELOCITIES, lambda _: 0.2 * np.eye(6)[0], 0.3)
    moved = servos.plant.measure().position - elsewhere
    assert 0.02 < moved[0] < 0.1
    np.testing.assert_allclose(moved[1:], 0.0, atol=0.005)


def test_a_fault_found_when_connecting_is_cleared_if_nothing_can_fall(tmp_path):
    with Servos(tmp_path / "port") as servos, closing(ViperX(ROBOT, str(tmp_path / "port"))) as arm:
        servos.firmware.inject("overload")
        arm.connect()
        arm.close()
        servos.firmware.inject("voltage")  # this one leaves the torque on, and a restart would take it
        with pytest.raises(DeviceError, match=r"servo 4 \(elbow\): voltage; support the arm"):
            arm.connect()
        assert all(servos.torques())


def test_nobody_there():
    arm = ViperX(ROBOT, "/dev/nowhere")
    with pytest.raises(DeviceError, match=r"/dev/nowhere.*plugged in.*dialout"):
        arm.connect()
    arm.stop()
    arm.close()


# Parts.


def test_the_linkage_is_its_own_inverse_and_that_of_the_emulator():
    linkage, fingers = Linkage(), Fingers({})
    for width_m in np.linspace(0.0, 0.08, 17):
        assert linkage.width(linkage.angle(width_m)) == pytest.approx(width_m, abs=1e-9)
        assert fingers.width_m(linkage.angle(width_m)) == pytest.approx(width_m, abs=1e-9)
    # ALOHA's constants: 1.4910 rad is 58 mm, -0.6213 rad is 18.44 mm from the middle
    assert linkage.width(1.4910) / 2 + 0.018 == pytest.approx(0.058, abs=2e-4)
    assert linkage.width(-0.6213) / 2 + 0.018 == pytest.approx(0.01844, abs=2e-5)


def test_a_servos_clock_tells_old_answers_also_where_it_wraps():
    clock, age = ServoClock(), 0.0
    for k in range(4000):  # 40 s, past the wrap, on a clock that is 1 % slow
        age = clock.age_s(int(k * 10 * 0.99) % 32768, 100.0 + k * 0.01)
        assert age < 0.005
    assert clock.age_s(int(4000 * 10 * 0.99 - 150) % 32768, 140.0) == pytest.approx(0.15, abs=0.005)
    assert clock.age_s(int(4000 * 10 * 0.99 - 150) % 32768, 140.3) == pytest.approx(0.45, abs=0.02)


def test_a_port_that_is_no_adapter_has_no_latency_timer():
    assert latency_timer_ms("/dev/null") is None


def test_wrong_options_are_named(port):
    with pytest.raises(ConfigError, match="5 offsets_rad, expected 6"):
        ViperX(ROBOT, "/dev/null", offsets_rad=(0.0,) * 5)
    with pytest.raises(ConfigError, match="12345 baud"):
        DynamixelBus("/dev/null", baud=12345)


def test_what_a_servo_refuses_is_told(tmp_path):
    with Servos(tmp_path / "port"), closing(DynamixelBus(str(tmp_path / "port"))) as bus:
        bus.open()
        from vla_ros.robots import dynamixel_bus as dxl

        assert bus.ping(8) == 1020
        bus.write(8, dxl.TORQUE_ENABLE, 1)
        with pytest.raises(DeviceError, match=r"servo 8: write of 3.*access denied"):
            bus.write(8, dxl.OPERATING_MODE, 3)
        with pytest.raises(StaleData, match="servo 77: ping: no answer in 3 attempts"):
            bus.ping(77)
