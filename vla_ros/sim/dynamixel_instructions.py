"""What servos on one bus do with an instruction, and who answers what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vla_ros.sim import dynamixel_protocol as protocol
from vla_ros.sim import dynamixel_servo as registers
from vla_ros.sim.dynamixel_protocol import BROADCAST, Instruction
from vla_ros.sim.dynamixel_servo import Servo

Servos = Mapping[int, Servo]
Answers = list[tuple[int, bytes]]


def execute(instruction: Instruction, servos: Servos) -> Answers:
    """Carries it out on `servos` (those that hear it, by id); returns who answers with which packet, in the order on the wire."""
    group = _GROUP.get(instruction.code)
    if group is not None:
        return group(instruction.parameters, servos) if instruction.servo == BROADCAST else []
    single = _SINGLE.get(instruction.code, _unknown)
    answers = []
    for number, servo in servos.items():
        if instruction.servo not in (number, BROADCAST) and servo.table[registers.SECONDARY_ID] != instruction.servo:
            continue
        error, data = single(servo, instruction.parameters)
        # shadows do as they are told and keep silent; a broadcast is answered to pings only
        if number == instruction.servo or (instruction.servo == BROADCAST and instruction.code == protocol.PING):
            answers.append((number, protocol.status(number, error | servo.alert, data)))
    return answers


def _ping(servo: Servo, parameters: bytes) -> tuple[int, bytes]:
    return 0, bytes((*servo.table[registers.MODEL : registers.MODEL + 2], servo.table[registers.FIRMWARE]))


def _read(servo: Servo, parameters: bytes) -> tuple[int, bytes]:
    if len(parameters) != 4:
        return protocol.LENGTH_ERROR, b""
    return _content(servo, *_words(parameters))


def _write(servo: Servo, parameters: bytes) -> tuple[int, bytes]:
    if len(parameters) < 3:
        return protocol.LENGTH_ERROR, b""
    return servo.write(int.from_bytes(parameters[:2], "little"), parameters[2:]), b""


def _reboot(servo: Servo, parameters: bytes) -> tuple[int, bytes]:
    servo.reboot()
    return 0, b""


def _unknown(servo: Servo, parameters: bytes) -> tuple[int, bytes]:
    return protocol.INSTRUCTION_ERROR, b""


def _sync_read(parameters: bytes, servos: Servos) -> Answers:
    return [(number, protocol.status(number, error, data)) for number, error, data in _contents(parameters, servos)]


def _fast_sync_read(parameters: bytes, servos: Servos) -> Answers:
    contents = list(_contents(parameters, servos))
    complete = contents and len(contents) == len(parameters) - 4
    return [(contents[0][0], protocol.fast_status(contents))] if complete else []


def _bulk_read(parameters: bytes, servos: Servos) -> Answers:
    answers = []
    for at in range(0, len(parameters) - 4, 5):
        servo = servos.get(parameters[at])
        if servo is None:
            break
        error, data = _content(servo, *_words(parameters[at + 1 : at + 5]))
        answers.append((servo.number, protocol.status(servo.number, error | servo.alert, data)))
    return answers


def _sync_write(parameters: bytes, servos: Servos) -> Answers:
    if len(parameters) >= 4:
        address, length = _words(parameters[:4])
        for at in range(4, len(parameters) - length, length + 1):
            _give(servos, parameters[at], address, parameters[at + 1 : at + 1 + length])
    return []


def _bulk_write(parameters: bytes, servos: Servos) -> Answers:
    at = 0
    while at + 5 < len(parameters):
        address, length = _words(parameters[at + 1 : at + 5])
        if at + 5 + length <= len(parameters):
            _give(servos, parameters[at], address, parameters[at + 5 : at + 5 + length])
        at += 5 + length
    return []


def _give(servos: Servos, number: int, address: int, data: bytes) -> None:
    for servo in servos.values():
        if number in (servo.number, servo.table[registers.SECONDARY_ID]):
            servo.write(address, data)


def _contents(parameters: bytes, servos: Servos) -> Iterator[tuple[int, int, bytes]]:
    """Each waits for the one before it: after a missing servo, nobody answers."""
    address, length = _words(parameters[:4])
    for number in parameters[4:]:
        servo = servos.get(number)
        if servo is None:
            return
        error, data = _content(servo, address, length)
        yield number, error | servo.alert, data


def _content(servo: Servo, address: int, length: int) -> tuple[int, bytes]:
    if not length or address + length > registers.SIZE:
        return protocol.RANGE_ERROR, b""
    return 0, bytes(servo.table[address : address + length])


def _words(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")


_SINGLE: dict[int, Callable[[Servo, bytes], tuple[int, bytes]]] = {
    protocol.PING: _ping,
    protocol.READ: _read,
    protocol.WRITE: _write,
    protocol.REBOOT: _reboot,
}
_GROUP: dict[int, Callable[[bytes, Servos], Answers]] = {
    protocol.SYNC_READ: _sync_read,
    protocol.FAST_SYNC_READ: _fast_sync_read,
    protocol.BULK_READ: _bulk_read,
    protocol.SYNC_WRITE: _sync_write,
    protocol.BULK_WRITE: _bulk_write,
}
