"""The emulated PiPer: its frames byte by byte, its controller, and the vendor's own client on its bus."""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import contextmanager

import numpy as np
import pytest
from piper_sdk import C_PiperInterface_V2

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.sim import piper_frames as frames
from vla_ros.sim.piper_bus import PiperBus
from vla_ros.sim.piper_controller import PiperController
from vla_ros.sim.plant import KinematicPlant, Measurement

ROBOT = load_embodiment("piper").robots["arm"]
HOME = np.array(ROBOT.home_rad)
ADDRESS = f"127.0.{os.getpid() % 200 + 20}.11"
ENABLE, CAN_MODE = bytes([7, 2, 0, 0, 0, 0, 0, 0]), bytes([1, 1, 100, 0, 0, 0, 0, 0])
CLEAR_ERRORS, RESUME = bytes([7, 0, 0, 0, 0, 0xAE, 0, 0]), bytes([2, 0, 0, 0, 0, 0, 0, 0])


@contextmanager
def a_bus(port: int):
    bus = PiperBus(KinematicPlant(ROBOT), {"can": f"socket://{ADDRESS}:{port}"})
    bus.start()
    try:
        yield bus
    finally:
        bus.close()


@pytest.fixture
def plant():
    return KinematicPlant(ROBOT)


@pytest.fixture
def controller(plant):
    controller = PiperController(plant)
    controller.obey(frames.ENABLE, ENABLE)
    controller.obey(frames.MODE, CAN_MODE)
    return controller


def send_joints(controller: PiperController, position: np.ndarray) -> None:
    values = np.rint(np.degrees(position) * 1e3).astype(int)
    for i in range(3):
        controller.obey(0x155 + i, b"".join(int(value).to_bytes(4, "big", signed=True) for value in values[2 * i : 2 * i + 2]))


def run(controller: PiperController, plant: KinematicPlant, seconds: float) -> None:
    for _ in range(round(seconds / 0.002)):
        controller.step(0.002)
        plant.step(0.002)


def test_the_frames_byte_by_byte():
    position = np.radians([90.0, 45.5, -30.25, 0.001, -0.001, -120.0])
    velocity, effort = np.array([0.5, 0, 0, 0, 0, -1.0]), np.array([1.18125, 0, 0, -0.95844, 0, 0])
    measured = Measurement(0, position, velocity, effort, 0.07)
    status = frames.status(1, 5, 1, True, 0x0004)
    lines = frames.fast(measured, status, bytes(24), 0xC0, 1.0).decode().split("\r")
    assert lines[0] == "t2A180105010001000004"[:5] + "0105010001000004"
    assert lines[4:7] == ["t2A5800015F900000B1BC", "t2A68FFFF89D600000001", "t2A78FFFFFFFFFFFE2B40"]
    assert lines[7] == "t2A880001117003E8C000"
    assert lines[8] == "t251801F403E800000623"
    assert lines[13] == "t2568FC180000FFFFF7D2"
    slow = frames.slow([0x40, 0x50, 0, 0, 0, 0], effort).decode().split("\r")
    assert slow[1].startswith("t2628") and slow[1][15:17] == "50"


def test_end_pose_is_that_of_the_sdk():
    from piper_sdk.kinematics import C_PiperForwardKinematics

    for position in np.random.default_rng(0).uniform(ROBOT.position_min_rad, ROBOT.position_max_rad, (20, 6)):
        data = frames.end_pose(position)
        sent = np.array([int.from_bytes(data[4 * i : 4 * i + 4], "big", signed=True) * 1e-3 for i in range(6)])
        np.testing.assert_allclose(sent, C_PiperForwardKinematics(0x01).CalFK(list(position))[5], atol=0.01)


def test_lines_are_read_as_they_are_written():
    assert frames.parse(frames.line(0x155, b"\x01\x02")[:-1]) == (0x155, b"\x01\x02")
    for wrong in ("", "t", "t15", "t1558", "t155801", "tXYZ10A", "t9991", "t15510G", "T0000015510A", "t155901", "t8001FF"):
        assert frames.parse(wrong) is None, wrong


def test_the_arm_follows_joint_targets_at_the_commanded_speed(controller, plant):
    target = HOME + np.array([0.8, 0, 0, 0, 0, 0.8])
    controller.obey(frames.MODE, bytes([1, 1, 50, 0, 0, 0, 0, 0]))
    send_joints(controller, target)
    run(controller, plant, 0.2)
    assert plant.measure().velocity[0] == pytest.approx(1.0, abs=0.1), "5 rad/s2"
    run(controller, plant, 0.1)
    controller.obey(frames.MODE, bytes([1, 1, 10, 0, 0, 0, 0, 0]))
    run(controller, plant, 0.4)
    assert plant.measure().velocity[5] == pytest.approx(0.392, abs=0.01), "10 %"
    run(controller, plant, 2.0)
    np.testing.assert_allclose(plant.measure().position, target, atol=1e-3)


@pytest.mark.parametrize("mode", [bytes([0, 1, 100]), bytes([1, 0, 100]), bytes([1, 2, 100])], ids=["standby", "move P", "move L"])
def test_joint_targets_count_in_can_mode_and_move_j_only(controller, plant, mode):
    controller.obey(frames.MODE, mode + bytes(5))
    send_joints(controller, HOME + 0.1)
    run(controller, plant, 0.2)
    np.testing.assert_allclose(plant.measure().position, HOME, atol=1e-4)


def test_disabled_drives_give_way_and_ignore_targets(controller, plant):
    controller.obey(frames.ENABLE, bytes([4, 1, 0, 0, 0, 0, 0, 0]))
    assert controller.drives == [0x40, 0x40, 0x40, 0, 0x40, 0x40]
    send_joints(controller, HOME + 0.1)
    run(controller, plant, 0.2)
    np.testing.assert_allclose(plant.measure().position, HOME, atol=1e-4)


def test_a_target_beyond_a_limit_is_refused_and_told(controller, plant):
    send_joints(controller, HOME + np.array([3.0, 0, 0, 0, 0, 0]))
    assert controller.status[1] == 4
    run(controller, plant, 0.2)
    np.testing.assert_allclose(plant.measure().position, HOME, atol=1e-4)
    send_joints(controller, HOME)
    assert controller.status[1] == 0


def test_an_emergency_stop_latches_until_it_is_resumed(controller, plant):
    send_joints(controller, HOME + 0.3)
    run(controller, plant, 0.2)
    controller.inject("estop")
    held = plant.measure().position
    send_joints(controller, HOME - 0.1)
    run(controller, plant, 0.3)
    np.testing.assert_allclose(plant.measure().position, held, atol=0.01)
    controller.obey(frames.STOP, RESUME)
    assert controller.status[1] == 1, "the button is still pressed"
    controller.clear()
    controller.obey(frames.CONFIGURE_JOINT, CLEAR_ERRORS)
    assert controller.status[1] == 1
    controller.obey(frames.STOP, RESUME)
    assert controller.status[1] == 0
    assert controller.drives == [0] * 6, "resuming takes the power"


def test_joint_errors_stay_until_they_are_cleared(controller):
    controller.inject("collision")
    assert (controller.status[1], controller.drives[1]) == (7, 0x50)
    controller.obey(frames.CONFIGURE_JOINT, CLEAR_ERRORS)
    assert controller.status[1] == 7
    controller.clear()
    assert controller.status[1] == 7
    assert controller.obey(frames.CONFIGURE_JOINT, CLEAR_ERRORS).startswith("t4768")
    assert controller.status[1] == 0


def test_after_a_reset_of_the_simulator_the_old_target_is_forgotten(controller, plant):
    send_joints(controller, HOME + 0.3)
    run(controller, plant, 0.02)
    plant.drive(HOME)  # somebody else puts the arm back
    for _ in range(100):
        plant.step(0.002)
    controller.rest()
    run(controller, plant, 0.3)
    np.testing.assert_allclose(plant.measure().position, HOME, atol=1e-3)


def test_nothing_that_comes_over_the_bus_breaks_it():
    """Lines with flipped, cut and inserted bytes, then a good one: it is still answered."""
    chosen = random.Random(0)
    good = [frames.line(can_id, chosen.randbytes(8)) for can_id in (0x150, 0x151, 0x155, 0x156, 0x157, 0x159, 0x471, 0x472, 0x475, 0x4AF)]
    with a_bus(29536) as bus, socket.create_connection(bus.address) as connection:
        connection.sendall(b"S8\rO\r")
        for _ in range(500):
            line = bytearray(chosen.choice(good).encode())
            for _ in range(chosen.randint(1, 6)):
                at, kind = chosen.randrange(len(line) + 1), chosen.randrange(3)
                line[at : at + (kind < 2)] = b"" if kind == 0 else bytes([chosen.randrange(256)])
            connection.sendall(line)
            bus.step(0.002)
        connection.sendall(b"\r" + frames.line(0x4AF, bytes([1] + [0] * 7)).encode())
        connection.settimeout(2.0)
        heard, deadline_s = b"", time.monotonic() + 2.0
        while b"t4AF8532D56312E362D33\r" not in heard and time.monotonic() < deadline_s:  # S-V1.6-3
            heard = heard[-100:] + connection.recv(4096)
        assert b"t4AF8532D56312E362D33\r" in heard


def test_a_client_that_never_reads_slows_nobody():
    with a_bus(29537) as bus, socket.create_connection(bus.address) as deaf, socket.create_connection(bus.address) as reader:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"O\r")
        reader.sendall(b"O\r")
        reader.settimeout(1.0)
        heard, deadline_s = 0, time.monotonic() + 1.0
        while time.monotonic() < deadline_s:
            heard += reader.recv(65536).count(b"t2A5")
        assert heard > 100


def test_the_vendors_client_enables_and_moves_the_arm():
    """The SDK as it comes, with its two connections and its own threads."""
    with a_bus(29538) as bus:
        sdk = C_PiperInterface_V2("vendor", judge_flag=False, can_auto_init=False)
        sdk.CreateCanBus(f"socket://{ADDRESS}:29538", bustype="slcan", expected_bitrate=1000000, judge_flag=False)
        try:
            sdk.ConnectPort()
            deadline_s = time.monotonic() + 3.0
            while not sdk.EnablePiper() and time.monotonic() < deadline_s:
                time.sleep(0.05)
            assert sdk.GetArmEnableStatus() == [True] * 6
            target, deadline_s = HOME + np.array([0.1, 0, 0, 0, 0, -0.2]), time.monotonic() + 15.0
            while abs(sdk.GetArmJointMsgs().joint_state.joint_6 + 11459) > 50 and time.monotonic() < deadline_s:
                sdk.MotionCtrl_2(0x01, 0x01, 100, 0x00)
                sdk.JointCtrl(*np.rint(np.degrees(target) * 1e3).astype(int).tolist())
                for _ in range(10):
                    bus.step(0.002)
                    bus._plant.step(0.002)
                    time.sleep(0.002)
            assert sdk.GetArmJointMsgs().joint_state.joint_6 == pytest.approx(-11459, abs=50)
            assert sdk.GetPiperFirmwareVersion() == "S-V1.6-3"
            assert sdk.GetCurrentMotorAngleLimitMaxVel().current_motor_angle_limit_max_vel.motor_num == 6
        finally:
            sdk.DisconnectPort()


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match="socket://ADDRESS:PORT"):
        PiperBus(KinematicPlant(ROBOT), {"can": "can0"})
    with a_bus(29539) as bus:
        with pytest.raises(DeviceError, match="29539"):
            PiperBus(KinematicPlant(ROBOT), {"can": f"socket://{ADDRESS}:29539"}).start()
        with pytest.raises(ConfigError, match="no fault 'fire'"):
            bus.inject("fire")
