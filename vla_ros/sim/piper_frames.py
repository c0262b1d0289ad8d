"""CAN frames of the AgileX PiPer, as slcan lines. Numbers: protocol V2 of piper_sdk 0.6.2; big-endian throughout.

A line is `t` + id (3 hex digits) + length + data (hex) + carriage return.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from vla_ros.sim.plant import Measurement

# Commands to the arm.
STOP, MODE, JOINTS_12, JOINTS_34, JOINTS_56, GRIPPER = 0x150, 0x151, 0x155, 0x156, 0x157, 0x159
ENABLE, QUERY_LIMITS, CONFIGURE_JOINT, QUERY_FIRMWARE = 0x471, 0x472, 0x475, 0x4AF
# Answers.
LIMITS, ACKNOWLEDGE, ACCELERATION, FIRMWARE = 0x473, 0x476, 0x47C, 0x4AF
EFFECTIVE = 0xAE  # the byte that makes a setting count

CURRENT_A_PER_NM = np.array([1 / 1.18125] * 3 + [1 / 0.95844] * 3)
_VOLTS, _DEGREES_C = 24.0, 35
# Modified DH table of the arm (m, rad), joints 2 and 3 with the 2 degree offset: alpha, a, d, theta at joint position 0.
_DH = (
    (0.0, 0.0, 0.123, 0.0),
    (-math.pi / 2, 0.0, 0.0, -math.radians(172.22)),
    (0.0, 0.28503, 0.0, -math.radians(102.78)),
    (math.pi / 2, -0.02198, 0.25075, 0.0),
    (-math.pi / 2, 0.0, 0.0, 0.0),
    (math.pi / 2, 0.0, 0.091, 0.0),
)


def line(can_id: int, data: bytes) -> str:
    """Returns one frame as an slcan line."""
    return f"t{can_id:03X}{len(data)}{data.hex().upper()}\r"


def parse(text: str) -> tuple[int, bytes] | None:
    """Returns id and data of a standard data frame's line (without its end), None when it is none."""
    try:
        can_id, length, data = int(text[1:4], 16), int(text[4]), bytes.fromhex(text[5:])
    except (ValueError, IndexError):
        return None
    return (can_id, data) if text[0] == "t" and len(data) == length <= 8 and can_id <= 0x7FF else None


def end_pose(position_rad: np.ndarray) -> bytes:
    """Returns the payload [24 bytes] of 0x2A2-4: flange x, y, z (0.001 mm), rx, ry, rz (0.001 degree, R = Rz Ry Rx) in the arm's foot."""
    pose = np.eye(4)
    for (alpha, a, d, offset), angle in zip(_DH, position_rad, strict=True):
        ca, sa, ct, st = math.cos(alpha), math.sin(alpha), math.cos(angle + offset), math.sin(angle + offset)
        pose = pose @ np.array([[ct, -st, 0, a], [st * ca, ct * ca, -sa, -sa * d], [st * sa, ct * sa, ca, ca * d], [0, 0, 0, 1]])
    turn = pose[:3, :3]
    pitch = math.asin(max(-1.0, min(1.0, -turn[2, 0])))
    angles = math.atan2(turn[2, 1], turn[2, 2]), pitch, math.atan2(turn[1, 0], turn[0, 0])
    return struct.pack(">6i", *(round(value * 1e6) for value in pose[:3, 3]), *(round(math.degrees(angle) * 1e3) for angle in angles))


def fast(measured: Measurement, status: bytes, pose: bytes, gripper_status: int, torque_nm: float) -> bytes:
    """Returns what the arm sends every cycle: 0x2A1 status, 0x2A2-4 end pose, 0x2A5-7 joints, 0x2A8 gripper, 0x251-6 drives."""
    joints = struct.pack(">6i", *np.rint(np.degrees(measured.position) * 1e3).astype(int).tolist())
    gripper = struct.pack(">ihBx", round(measured.gripper_width_m * 1e6), min(round(torque_nm * 1e3), 32767), gripper_status)
    speed = np.clip(np.rint(measured.velocity * 1e3), -32768, 32767).astype(int).tolist()
    current = np.clip(np.rint(measured.effort * CURRENT_A_PER_NM * 1e3), -32768, 32767).astype(int).tolist()
    turns = np.rint(measured.position * 1e3).astype(int).tolist()
    lines = [line(0x2A1, status), *(line(0x2A2 + i, pose[8 * i : 8 * i + 8]) for i in range(3))]
    lines += [line(0x2A5 + i, joints[8 * i : 8 * i + 8]) for i in range(3)]
    lines.append(line(0x2A8, gripper))
    lines += [line(0x251 + i, struct.pack(">hhi", speed[i], current[i], turns[i])) for i in range(6)]
    return "".join(lines).encode()


def status(mode: int, arm: int, move: int, moving: bool, errors: int) -> bytes:
    """Returns the payload of 0x2A1. `arm` is 0 normal, 1 emergency stop, ...; `errors` bits 8-13 angle limits, 0-5 joint communication."""
    return struct.pack(">BBBBBBH", mode, arm, move, 0, int(moving), 0, errors)


def slow(states: Sequence[int], effort_nm: np.ndarray) -> bytes:
    """Returns 0x261-6: supply, temperatures, state of each drive (bit 4 collision, 6 enabled) and its bus current."""
    current = np.clip(np.abs(effort_nm) * CURRENT_A_PER_NM * 1e3, 0, 65535).astype(int).tolist()
    head = round(_VOLTS * 10), _DEGREES_C, _DEGREES_C
    return "".join(line(0x261 + i, struct.pack(">HhbBH", *head, states[i], current[i])) for i in range(6)).encode()
