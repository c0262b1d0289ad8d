"""The emulated servo bus: packets of the e-manual, what servos accept, and that nothing on the wire can crash it."""

from __future__ import annotations

import os
import random
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.sim import dynamixel_protocol as protocol
from vla_ros.sim import dynamixel_servo as registers
from vla_ros.sim.dynamixel_instructions import execute
from vla_ros.sim.dynamixel_protocol import Instruction, Parser, crc16, packet
from vla_ros.sim.dynamixel_servo import Servo
from vla_ros.sim.dynamixel_servos import DynamixelServos
from vla_ros.sim.plant import KinematicPlant

ROBOT = load_embodiment("aloha").robots["left"]


def instruction(servo: int, code: int, parameters: bytes = b"") -> bytes:
    return packet(servo, bytes((code,)) + parameters)


def goal(ticks: int) -> bytes:
    return registers.GOAL_POSITION.to_bytes(2, "little") + ticks.to_bytes(4, "little")


@pytest.fixture
def servos() -> dict[int, Servo]:
    return {number: Servo(number, 1020, 1) for number in (1, 2, 3)}


# Packets as printed in Robotis' description of Protocol 2.0.
PRINTED = {
    "ping of id 1": (instruction(1, protocol.PING), "FFFFFD0001030001194E"),
    "read of present position": (instruction(1, protocol.READ, bytes((132, 0, 4, 0))), "FFFFFD0001070002840004001D15"),
    "write of goal position 512": (instruction(1, protocol.WRITE, goal(512)), "FFFFFD0001090003740000020000CA89"),
    "reboot": (instruction(1, protocol.REBOOT), "FFFFFD00010300082F4E"),
    "sync read of two": (instruction(0xFE, protocol.SYNC_READ, bytes((132, 0, 4, 0, 1, 2))), "FFFFFD00FE090082840004000102CEFA"),
    "answer to a ping": (protocol.status(1, 0, bytes((0x06, 0x04, 0x26))), "FFFFFD000107005500060426655D"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_packets_are_those_of_the_manual(name):
    made, printed = PRINTED[name]
    assert made == bytes.fromhex(printed)


def test_a_header_inside_a_packet_is_stuffed_and_comes_back():
    data = b"\x01\xff\xff\xfd\x02\xff\xff\xfd"
    sent = instruction(1, protocol.WRITE, data)
    assert sent.count(b"\xff\xff\xfd\xfd") == 2
    (received,) = Parser().feed(sent)
    assert (received.servo, received.code, received.parameters, received.wire_bytes) == (1, protocol.WRITE, data, len(sent))


def test_packets_come_in_pieces_and_after_noise():
    parser, sent = Parser(), b"\x00\xff\xff" + instruction(7, protocol.PING) + instruction(8, protocol.PING)
    found = [item.servo for byte in sent for item in parser.feed(bytes((byte,)))]
    assert found == [7, 8]


def test_a_wrong_checksum_is_no_instruction():
    sent = bytearray(instruction(1, protocol.PING))
    sent[-1] ^= 1
    parser = Parser()
    assert not list(parser.feed(bytes(sent)))
    assert parser.bad_crc == 1
    assert len(list(parser.feed(instruction(1, protocol.PING)))) == 1


def test_mutated_packets_neither_crash_nor_stall_the_bus(servos):
    """500 packets with flipped, lost and added bytes, checksum mended in half of them so that they reach the servos."""
    dice, parser = random.Random(1), Parser()
    whole = [
        instruction(1, protocol.READ, bytes((132, 0, 4, 0))),
        instruction(2, protocol.WRITE, goal(2048)),
        instruction(0xFE, protocol.SYNC_READ, bytes((116, 0, 20, 0, 1, 2, 3))),
        instruction(0xFE, protocol.FAST_SYNC_READ, bytes((116, 0, 20, 0, 1, 2, 3))),
        instruction(0xFE, protocol.SYNC_WRITE, bytes((116, 0, 4, 0, 1, 0, 8, 0, 0, 2, 0, 8, 0, 0))),
        instruction(0xFE, protocol.BULK_READ, bytes((1, 132, 0, 4, 0, 2, 126, 0, 2, 0))),
        instruction(0xFE, protocol.BULK_WRITE, bytes((1, 116, 0, 4, 0, 0, 8, 0, 0))),
    ]
    reached = 0
    for _ in range(500):
        sent = bytearray(dice.choice(whole))
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(sent))
            sent[at : at + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
        if dice.random() < 0.5 and len(sent) > 9:
            sent[:4], sent[5:7] = protocol.HEADER, (len(sent) - 7).to_bytes(2, "little")
            sent[-2:] = crc16(bytes(sent[:-2])).to_bytes(2, "little")
        for item in parser.feed(bytes(sent)):
            reached += 1
            for _, answer in execute(item, servos):
                assert crc16(answer[:-2]) == int.from_bytes(answer[-2:], "little")
    assert reached > 100
    heard = [item for _ in range(2) for item in parser.feed(instruction(3, protocol.PING))]
    assert heard[-1] == Instruction(3, protocol.PING, b"", 10)


def test_torque_locks_the_eeprom(servos):
    servo = servos[1]
    assert servo.write(registers.OPERATING_MODE, bytes((5,))) == 0
    assert servo.write(registers.TORQUE_ENABLE, b"\1") == 0
    assert servo.write(registers.OPERATING_MODE, bytes((3,))) == protocol.ACCESS_ERROR
    assert servo.write(registers.PRESENT_POSITION, bytes(4)) == protocol.ACCESS_ERROR


def test_what_a_servo_refuses(servos):
    servo = servos[1]
    servo.write(registers.MAX_POSITION, (3000).to_bytes(4, "little"))
    assert servo.write(registers.GOAL_POSITION, (3001).to_bytes(4, "little")) == protocol.LIMIT_ERROR
    assert servo.write(registers.OPERATING_MODE, bytes((2,))) == protocol.LIMIT_ERROR
    assert servo.write(registers.SIZE - 1, bytes(2)) == protocol.RANGE_ERROR
    (unknown,) = execute(Instruction(1, 0x77, b""), servos)
    assert unknown[1][8] == protocol.INSTRUCTION_ERROR


def test_torque_begins_where_the_shaft_is(servos):
    servo = servos[1]
    servo.measured(0.5, 0.0, 0)
    servo.write(registers.TORQUE_ENABLE, b"\1")
    assert servo.goal_rad == pytest.approx(0.5, abs=1e-3)


def test_drive_mode_and_mounting_turn_the_angle():
    servo = Servo(1, 1020, -1)
    servo.measured(0.5, 0.1, 10)
    assert servo.get(registers.PRESENT_POSITION, 4, signed=True) == 2048 - 326
    servo.write(registers.DRIVE_MODE, b"\1")
    servo.measured(0.5, 0.1, 10)
    assert servo.get(registers.PRESENT_POSITION, 4, signed=True) == 2048 + 326
    assert servo.get(registers.PRESENT_VELOCITY, 4, signed=True) == 4
    assert servo.get(registers.PRESENT_CURRENT, 2, signed=True) == 10


def test_what_does_not_fit_a_register_is_clipped(servos):
    servo = servos[1]
    servo.measured(1e7, -1e9, 40_000)
    assert servo.get(registers.PRESENT_CURRENT, 2, signed=True) == 32767
    assert servo.get(registers.PRESENT_VELOCITY, 4, signed=True) == -(1 << 31)
    assert servo.get(registers.PRESENT_POSITION, 4, signed=True) == (1 << 31) - 1
    servo.measured(-1e7, 1e9, -40_000)
    assert servo.get(registers.PRESENT_CURRENT, 2, signed=True) == -32768
    assert servo.get(registers.PRESENT_VELOCITY, 4, signed=True) == (1 << 31) - 1
    assert servo.get(registers.PRESENT_POSITION, 4, signed=True) == -(1 << 31)


def test_an_overload_takes_the_torque_until_a_restart(servos):
    servo = servos[1]
    servo.write(registers.TORQUE_ENABLE, b"\1")
    servo.raise_error(registers.OVERLOAD)
    servo.write(registers.TORQUE_ENABLE, b"\1")
    assert not servo.torque
    ((_, answer),) = execute(Instruction(1, protocol.PING, b""), servos)
    assert answer[8] == protocol.ALERT
    execute(Instruction(1, protocol.REBOOT, b""), servos)
    assert not servo.awake
    assert servo.alert == 0


def test_a_shadow_does_what_its_first_servo_is_told_in_silence(servos):
    servos[3].write(registers.SECONDARY_ID, bytes((2,)))
    answers = execute(Instruction(2, protocol.WRITE, goal(1000)), servos)
    assert [number for number, _ in answers] == [2]
    execute(Instruction(0xFE, protocol.SYNC_WRITE, bytes((116, 0, 4, 0, 2)) + (900).to_bytes(4, "little")), servos)
    assert [servos[number].get(registers.GOAL_POSITION, 4) for number in (1, 2, 3)] == [0, 900, 900]


def test_after_a_missing_servo_nobody_answers_a_sync_read(servos):
    asked = Instruction(0xFE, protocol.SYNC_READ, bytes((132, 0, 4, 0, 1, 2, 3)))
    assert [number for number, _ in execute(asked, servos)] == [1, 2, 3]
    del servos[2]
    assert [number for number, _ in execute(asked, servos)] == [1]


def test_a_fast_sync_read_is_one_packet_with_a_checksum_a_servo(servos):
    ((_, answer),) = execute(Instruction(0xFE, protocol.FAST_SYNC_READ, bytes((7, 0, 1, 0, 1, 2, 3))), servos)
    assert [answer[at + 1 : at + 3] for at in (8, 13, 18)] == [b"\1\1", b"\2\2", b"\3\3"]
    for end in (13, 18, 23):
        assert crc16(answer[: end - 2]) == int.from_bytes(answer[end - 2 : end], "little")
    assert len(answer) == 23


def test_the_profile_is_a_time_or_a_speed(servos):
    servo = servos[1]
    assert servo.profile_s(1.0) == 0.0
    servo.write(registers.PROFILE_VELOCITY, (131).to_bytes(4, "little"))
    assert servo.profile_s(1.0) == pytest.approx(1 / 3.14, rel=0.01)
    servo.write(registers.DRIVE_MODE, b"\4")
    assert servo.profile_s(1.0) == pytest.approx(0.131)


# On the pseudo-terminal.


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[DynamixelServos]:
    bus = DynamixelServos(KinematicPlant(ROBOT), {"port": str(tmp_path / "port"), "baud": 57600})
    bus.start()
    yield bus
    bus.close()


def ask(port: Path, sent: bytes, baud: int = 57600) -> tuple[bytes, float]:
    """Returns the answer and how long it took (s)."""
    import serial

    with serial.Serial(str(port), baud, timeout=0.15) as line:
        begun_s = time.monotonic()
        line.write(sent)
        answer = line.read(14)
        return answer, time.monotonic() - begun_s


def test_answers_take_the_wire_their_time(bus, tmp_path):
    answer, took_s = ask(tmp_path / "port", instruction(1, protocol.PING))
    assert answer == protocol.status(1, 0, bytes((0x60, 0x04, 45)))
    # 24 bytes of 10 bits at 57600 baud, 0.5 ms of return delay, 1 ms in the adapter
    assert took_s > 24 * 10 / 57600 + 0.0015


def test_another_baud_rate_is_not_heard(bus, tmp_path):
    assert ask(tmp_path / "port", instruction(1, protocol.PING), 1_000_000)[0] == b""


def test_the_port_is_a_link_that_goes_with_it(tmp_path):
    port = tmp_path / "port"
    port.symlink_to("/dev/pts/none")  # left behind by one that was killed
    bus = DynamixelServos(KinematicPlant(ROBOT), {"port": str(port)})
    bus.start()
    assert os.path.realpath(port).startswith("/dev/pts/")
    with pytest.raises(DeviceError, match="another simulation"):
        DynamixelServos(KinematicPlant(ROBOT), {"port": str(port)}).start()
    bus.close()
    bus.close()
    assert not port.is_symlink()


def test_a_file_in_the_place_of_the_port_is_left_alone(tmp_path):
    port = tmp_path / "port"
    port.write_text("mine")
    with pytest.raises(DeviceError, match="there is a file of this name"):
        DynamixelServos(KinematicPlant(ROBOT), {"port": str(port)}).start()
    assert port.read_text() == "mine"


def test_noise_from_the_host_leaves_it_alive(bus, tmp_path):
    fd = os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    os.write(fd, random.Random(2).randbytes(2000))
    os.close(fd)
    assert ask(tmp_path / "port", instruction(1, protocol.PING))[0] or ask(tmp_path / "port", instruction(1, protocol.PING))[0]


def test_an_unknown_fault_is_named(bus):
    with pytest.raises(ConfigError, match="did you mean 'overload'"):
        bus.inject("overlod")


def test_baud_rates_that_servos_do_not_have_are_named(tmp_path):
    with pytest.raises(ConfigError, match="1000000"):
        DynamixelServos(KinematicPlant(ROBOT), {"port": str(tmp_path / "port"), "baud": 100000})
