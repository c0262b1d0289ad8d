"""The base's end of the Kortex wire format, written out by hand: what a Gen3 reads from its clients and sends to them.

On purpose not the driver's code: two readings of the same public definition (Kinovarobotics/ros_kortex, kortex_driver/protos) meet in the
tests. Protobuf fields here are tag = number << 3 | kind; kinds: 0 varint, 2 length and bytes, 5 four bytes, little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SESSION, BASE, CYCLIC = 1, 2, 3
PROTOCOL_SERVER, DEVICE = 1, 3  # error codes
METHOD_FAILED, INVALID_PARAM, UNSUPPORTED_SERVICE, UNSUPPORTED_METHOD, FRAME_DECODING = 1, 3, 4, 5, 8
INVALID_SESSION, PAYLOAD_DECODING, INVALID_PASSWORD, USER_NOT_FOUND, IN_FAULT, IN_EMERGENCY_STOP = 12, 13, 15, 16, 22, 25
JOINT_COUNT_MISMATCH, WRONG_SERVOING_MODE, NOT_IN_CONTROL = 57, 75, 130
BASE_FRAME = 3  # of CartesianReferenceFrame
_BYTES = {1: 8, 5: 4}


class Malformed(Exception):
    """Bytes that are not what they should be."""


class Refused(Exception):
    """An error frame to be: its sub-error and text."""

    def __init__(self, sub_error: int, text: str, error: int = DEVICE) -> None:
        super().__init__(text)
        self.error, self.sub_error = error, sub_error


@dataclass(frozen=True)
class Request:
    """A frame from a client."""

    service: int
    function: int
    session: int
    message: int
    payload: bytes


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of every field: int for a varint or four bytes, bytes for the rest. Raises Malformed."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2 or kind in _BYTES:
            size, at = _varint(data, at) if kind == 2 else (_BYTES[kind], at)
            value, at = data[at : at + size], at + size
            if len(value) < size:
                raise Malformed(f"a field of {size} bytes, {len(value)} are left")
            if kind == 5:
                value = int.from_bytes(value, "little")
        else:
            raise Malformed(f"field kind {kind}")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return value, at + 1
        at, shift = at + 1, shift + 7
    raise Malformed("a number without an end")


def message(data: bytes, **wanted: tuple[int, type]) -> dict[str, int | bytes | float | list]:
    """Returns the fields `name=(number, type)`, with protobuf's defaults; type list collects repeated messages. Raises Malformed."""
    found: dict[str, int | bytes | float | list] = {name: kind() for name, (_, kind) in wanted.items()}
    for number, value in fields(data):
        for name, (wanted_number, kind) in wanted.items():
            if number != wanted_number:
                continue
            if isinstance(value, bytes) != (kind in (bytes, list)):
                raise Malformed(f"field {number} ({name}) has another type")
            if kind is list:
                found[name].append(value)
            else:
                found[name] = struct.unpack("<f", value.to_bytes(4, "little"))[0] if kind is float else value
    return found


def read_joint_speeds(payload: bytes, count: int) -> np.ndarray:
    """Returns the speeds [count] rad/s of a JointSpeeds. Raises Malformed, Refused."""
    speeds = {}
    for joint in message(payload, joints=(1, list))["joints"]:
        entry = message(joint, number=(1, int), value=(2, float))
        speeds[entry["number"]] = entry["value"]
    if sorted(speeds) != list(range(count)):
        raise Refused(JOINT_COUNT_MISMATCH, f"joints {sorted(speeds)} of {count}")
    return _finite(np.radians([speeds[i] for i in range(count)]))


def read_twist(payload: bytes) -> np.ndarray:
    """Returns the twist [6] (m/s, rad/s, axes of the base) of a TwistCommand. Raises Malformed, Refused: its frame is not the base."""
    command = message(payload, frame=(1, int), twist=(2, bytes))
    if command["frame"] != BASE_FRAME:
        raise Refused(INVALID_PARAM, f"reference frame {command['frame']}; only {BASE_FRAME}, the base, is simulated")
    axes = {axis: (number, float) for number, axis in enumerate(("x", "y", "z", "rx", "ry", "rz"), 1)}
    values = np.array(list(message(command["twist"], **axes).values()))
    return _finite(np.append(values[:3], np.radians(values[3:])))


def _finite(speeds: np.ndarray) -> np.ndarray:
    if not np.isfinite(speeds).all():
        raise Refused(INVALID_PARAM, "a speed that is not finite")
    return speeds


def read_request(frame: bytes) -> Request:
    """Raises Malformed: no request of header version 1 whose payload has the length that its header says."""
    parts = message(frame, header=(1, bytes), payload=(2, bytes))
    header = message(parts["header"], frame=(1, int), message=(2, int), service=(3, int), payload=(4, int))
    if header["frame"] >> 24 != 0x11:
        raise Malformed(f"header 0x{header['frame']:08x}, expected version 1, type 1")
    if header["payload"] & 0xFFFFFF != len(parts["payload"]):
        raise Malformed(f"header says {header['payload'] & 0xFFFFFF} bytes of payload, there are {len(parts['payload'])}")
    service, number = header["service"], header["message"]
    return Request(service >> 16 & 0xFFF, service & 0xFFFF, number >> 16, number & 0xFFFF, parts["payload"])


def answer(request: Request, session: int, payload: bytes = b"") -> bytes:
    """Returns the frame that answers `request`."""
    return _frame(request, session, 0, 0, payload)


def refusal(request: Request, error: int, sub_error: int, text: str) -> bytes:
    """Returns the frame that tells an error; its payload has the same code, sub-code and a text."""
    payload = varint(1, error) + varint(2, sub_error) + chunk(3, text.encode())
    return _frame(request, request.session, error, sub_error, payload)


def _frame(request: Request, session: int, error: int, sub_error: int, payload: bytes) -> bytes:
    header = (
        four(1, 0x13000000 | error << 12 | sub_error)
        + four(2, session << 16 | request.message)
        + four(3, 1 << 28 | request.service << 16 | request.function)
        + four(4, len(payload))
    )
    return chunk(1, header) + (chunk(2, payload) if payload else b"")


def varint(number: int, value: int) -> bytes:
    return _plain(number << 3) + _plain(value)


def _plain(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def four(number: int, value: int) -> bytes:
    return _plain(number << 3 | 5) + value.to_bytes(4, "little")


def real(number: int, value: float) -> bytes:
    return _plain(number << 3 | 5) + struct.pack("<f", value)


def chunk(number: int, data: bytes) -> bytes:
    return _plain(number << 3 | 2) + _plain(len(data)) + data


@dataclass(frozen=True)
class Report:
    """What RefreshFeedback tells: `state` of the arm, fault banks of the base and of each joint, angles in degrees, `closed` in percent."""

    state: int
    base_faults: int
    joint_faults: tuple[int, ...]
    position: np.ndarray
    velocity: np.ndarray
    torque: np.ndarray
    closed: float
    acceleration: float

    def encode(self) -> bytes:
        base = varint(2, self.state) + real(9, self.acceleration) + (four(31, self.base_faults) if self.base_faults else b"")
        joints = b"".join(
            chunk(3, real(4, angle) + real(5, speed) + real(6, torque) + (four(11, faults) if faults else b""))
            for angle, speed, torque, faults in zip(self.position, self.velocity, self.torque, self.joint_faults, strict=True)
        )
        gripper = chunk(7, four(1, 1) + real(4, self.closed))
        return chunk(2, base) + joints + chunk(4, chunk(18, gripper))
