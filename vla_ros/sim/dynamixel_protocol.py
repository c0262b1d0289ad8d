"""Dynamixel Protocol 2.0 on the servos' side: packets out of bytes and back (Robotis e-manual)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
PING, READ, WRITE, REBOOT, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x08, 0x82, 0x83
FAST_SYNC_READ, BULK_READ, BULK_WRITE = 0x8A, 0x92, 0x93
STATUS = 0x55
# errors in a status packet
INSTRUCTION_ERROR, CRC_ERROR, RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 2, 3, 4, 5, 6, 7
ALERT = 0x80
_LONGEST = 1024
_PREFIX = 7  # header, reserved, id, length


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes) -> int:
    """CRC-16 with polynomial 0x8005, start 0."""
    crc = 0
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _CRC[(crc >> 8) ^ byte]
    return crc


@dataclass(frozen=True)
class Instruction:
    """What a host asks: for which servo, what, with which parameters; `wire_bytes` it took on the bus."""

    servo: int
    code: int
    parameters: bytes
    wire_bytes: int = 0


def stuffed(body: bytes) -> bytes:
    """A header inside a packet gets one more FD, so that it cannot be taken for one."""
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def packet(servo: int, body: bytes) -> bytes:
    """A whole packet around `body`: instruction (or STATUS and error), then parameters."""
    body = stuffed(body)
    head = HEADER + bytes((servo,)) + (len(body) + 2).to_bytes(2, "little") + body
    return head + crc16(head).to_bytes(2, "little")


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """A servo's answer."""
    return packet(servo, bytes((STATUS, error)) + data)


def fast_status(answers: list[tuple[int, int, bytes]]) -> bytes:
    """The one answer to a fast sync read: every servo (id, error, data) adds its share and the checksum so far."""
    shares = [bytes((error, servo)) + data for servo, error, data in answers]
    length = 1 + sum(len(share) + 2 for share in shares)
    sent = HEADER + bytes((BROADCAST,)) + length.to_bytes(2, "little") + bytes((STATUS,))
    for share in shares:
        sent += share
        sent += crc16(sent).to_bytes(2, "little")
    return sent


class Parser:
    """Finds instructions in what comes over the wire; bytes that are none are passed over. `bad_crc` counts broken packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.bad_crc = 0

    def feed(self, data: bytes) -> Iterator[Instruction]:
        buffer = self._buffer
        buffer += data
        while True:
            start = buffer.find(HEADER)
            if start < 0:
                del buffer[: max(0, len(buffer) - len(HEADER) + 1)]
                return
            del buffer[:start]
            if len(buffer) < _PREFIX:
                return
            length = int.from_bytes(buffer[5:7], "little")
            if not 3 <= length <= _LONGEST:
                del buffer[: len(HEADER)]
                continue
            # a broken length must not make it wait for bytes that belong to the next packet
            following = buffer.find(HEADER, len(HEADER))
            end = _PREFIX + length
            if 0 <= following < end:
                self.bad_crc += 1
                del buffer[:following]
                continue
            if len(buffer) < end:
                return
            whole = bytes(buffer[:end])
            del buffer[:end]
            if crc16(whole[:-2]) != int.from_bytes(whole[-2:], "little"):
                self.bad_crc += 1
                continue
            body = whole[_PREFIX:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
            yield Instruction(whole[4], body[0], body[1:], len(whole))
