"""Both ends of the Kortex wire: against bytes that Kinova's own .proto files gave, against each other, and against broken frames.

The vectors: ros_kortex' protos compiled with protoc, serialized by Google's Python runtime. Frames: Kinova's Python client's bit masks.
"""

from __future__ import annotations

import random
import socket
import threading
import time

import numpy as np
import pytest

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.robots.kortex import codes, messages, motion
from vla_ros.robots.kortex.messages import DecodeError, new
from vla_ros.robots.kortex.session import Login, Session
from vla_ros.robots.kortex.wire import MAGIC, TcpTransport, WireError, pack_request, unpack
from vla_ros.sim import kortex_protocol
from vla_ros.sim.kortex_box import KortexBox
from vla_ros.sim.kortex_protocol import Malformed, Report, Request
from vla_ros.sim.plant import KinematicPlant

SPEEDS = (0.0, 1.5, -30.0, 0.0, 0.0, 45.0, -0.25)
CREATE_SESSION = "0a0561646d696e10904e1a0561646d696e20ac02"
JOINT_SPEEDS = "0a000a070801150000c03f0a070802150000f0c10a0208030a0208040a07080515000034420a07080615000080be"
# in the base's frame (3): 0.1, -0.25, 0 m/s, 0, 45, -0.5 degrees/s
TWIST_VALUES = (0.1, -0.25, 0.0, 0.0, np.radians(45.0), np.radians(-0.5))
TWIST = "080312140dcdcccc3d15000080be2d0000344235000000bf"
GRIPPER = "080312090a070801150000403f"
# base: IN_FAULT, bits 4 and 23; actuator i: 10 i + 0.5 deg, -i deg/s, 0.5 i N m, number 2 with bit 5; gripper 25 %; and unread fields
FEEDBACK = (
    "0d4d000000121710041d0000c4414dc3f51c416dcdcccc3efd01100080001a140d01000000250000003f3dcdcccc3d55000020421a1e0d0200000025000028412d"
    "000080bf350000003f3dcdcccc3d55000020421a280d03000000250000a4412d000000c0350000803f3dcdcccc3d55000020425d200000006d010000001a1e0d04"
    "000000250000f4412d000040c0350000c03f3dcdcccc3d55000020421a1e0d0500000025000022422d000080c035000000403dcdcccc3d55000020421a1e0d0600"
    "00002500004a422d0000a0c035000020403dcdcccc3d55000020421a1e0d0700000025000072422d0000c0c035000040403dcdcccc3d5500002042221e25000000"
    "3f92011615050000003a0f0d01000000250000c8413d00004040"
)
REQUEST_BYTES = bytes.fromhex("0a14 0d00000011 1509000500 1d98000210 2502000000 1202 0802")  # session 5, message 9, SetServoingMode
ERROR_BYTES = bytes.fromhex("0a14 0d16300013 1509000500 1d84000210 2504000000 1204 08031016")  # ERROR_DEVICE, ROBOT_IN_FAULT


class Scripted:
    """A transport that answers with what `script` makes of each frame sent."""

    def __init__(self, script):
        self._script, self._replies = script, []

    def send(self, frame: bytes) -> None:
        self._replies += self._script(kortex_protocol.read_request(frame))

    def receive(self, deadline_s: float) -> bytes:
        if not self._replies:
            raise TimeoutError
        return self._replies.pop(0)

    def close(self) -> None:
        pass


def session(script) -> Session:
    """Logged in as number 3; `script` answers the rest."""

    def answered(request: Request) -> list[bytes]:
        return [kortex_protocol.answer(request, 3)] if request.function == 1 and request.service == 1 else script(request)

    return Session(Scripted(answered), "kinova at test", Login("admin", "admin", 10.0, 0.3), 0.1)


def test_requests_are_the_bytes_that_kinova_defines():
    info = {"session_inactivity_timeout": 10000, "connection_inactivity_timeout": 300}
    assert new("CreateSessionInfo", username="admin", password="admin", **info).SerializeToString().hex() == CREATE_SESSION
    assert motion.joint_speeds(np.radians(SPEEDS)).message().SerializeToString().hex() == JOINT_SPEEDS
    assert motion.twist(TWIST_VALUES).message().SerializeToString().hex() == TWIST
    gripper = new("Gripper", finger=[new("Finger", finger_identifier=1, value=0.75)])
    assert new("GripperCommand", mode=codes.GRIPPER_POSITION, gripper=gripper).SerializeToString().hex() == GRIPPER
    assert pack_request(2, 152, 5, 9, b"\x08\x02") == REQUEST_BYTES


def test_feedback_of_kinova_is_read():
    state = messages.parse("Feedback", bytes.fromhex(FEEDBACK))
    assert state.base.active_state == codes.ArmState.IN_FAULT
    assert codes.bits(state.base.fault_bank_a, codes.BASE_FAULTS) == ["JOINT_FAULT", "EMERGENCY_STOP_ACTIVATED"]
    np.testing.assert_allclose([joint.position for joint in state.actuators], 10.0 * np.arange(7) + 0.5)
    np.testing.assert_allclose([joint.velocity for joint in state.actuators], -np.arange(7.0))
    np.testing.assert_allclose([joint.torque for joint in state.actuators], 0.5 * np.arange(7))
    assert codes.bits(state.actuators[2].fault_bank_a, codes.ACTUATOR_FAULTS) == ["MAXIMUM_TORQUE"]
    assert state.interconnect.gripper_feedback.motor[0].position == 25.0


def test_the_simulated_base_reads_what_kinova_defines():
    assert kortex_protocol.read_request(REQUEST_BYTES) == Request(2, 152, 5, 9, b"\x08\x02")
    info = kortex_protocol.message(
        bytes.fromhex(CREATE_SESSION), username=(1, bytes), session_ms=(2, int), password=(3, bytes), motion_ms=(4, int)
    )
    assert info == {"username": b"admin", "session_ms": 10000, "password": b"admin", "motion_ms": 300}
    np.testing.assert_allclose(kortex_protocol.read_joint_speeds(bytes.fromhex(JOINT_SPEEDS), 7), np.radians(SPEEDS))
    np.testing.assert_allclose(kortex_protocol.read_twist(bytes.fromhex(TWIST)), TWIST_VALUES, rtol=1e-6)


def test_feedback_of_the_simulated_base_is_read_by_the_client():
    report = Report(9, 1 << 4, (0, 0, 32, 0, 0, 0, 0), np.arange(7) * 51.4, np.arange(7) - 3.0, np.arange(7) * 0.5, 40.0, 9.82)
    state = messages.parse("Feedback", report.encode())
    assert (state.base.active_state, state.base.fault_bank_a) == (9, 16)
    np.testing.assert_allclose([joint.position for joint in state.actuators], report.position, rtol=1e-6)
    np.testing.assert_allclose([joint.velocity for joint in state.actuators], report.velocity)
    np.testing.assert_allclose([joint.torque for joint in state.actuators], report.torque)
    assert [joint.fault_bank_a for joint in state.actuators] == list(report.joint_faults)
    assert state.interconnect.gripper_feedback.motor[0].position == 40.0


def test_an_error_frame_is_named():
    reply = unpack(ERROR_BYTES)
    assert (reply.kind, reply.session, reply.message, reply.error, reply.sub_error) == (3, 5, 9, 3, 22)
    refuse = session(lambda request: [kortex_protocol.refusal(request, 3, 22, "push the red button")])
    with pytest.raises(DeviceError, match=r"Stop refused: ERROR_DEVICE, ROBOT_IN_FAULT \(push the red button\)") as caught:
        refuse.call(codes.STOP)
    assert caught.value.reason == "fault"
    over = session(lambda request: [kortex_protocol.refusal(request, 1, 12, "")])
    with pytest.raises(StaleData, match="INVALID_SESSION"):
        over.call(codes.STOP)


def test_answers_to_other_requests_are_passed_over():
    def late(request: Request) -> list[bytes]:
        before = Request(request.service, request.function, request.session, request.message - 1, b"")
        return [kortex_protocol.answer(before, 3, b"\x08\x63"), kortex_protocol.answer(request, 3, b"\x08\x07")]

    assert session(late).call(codes.GET_ARM_STATE) == b"\x08\x07"
    with pytest.raises(StaleData, match=r"GetArmState: no answer within 0.1 s"):
        session(lambda request: late(request)[:1]).call(codes.GET_ARM_STATE)


def test_frames_are_cut_out_of_the_stream_wherever_it_is_broken():
    frames = [REQUEST_BYTES, ERROR_BYTES, b"", bytes(range(256)) * 20]
    stream = b"".join(MAGIC + len(frame).to_bytes(4, "big") + frame for frame in frames)
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = TcpTransport(*server.getsockname(), 1.0)
        peer, _ = server.accept()

        def trickle() -> None:
            for cut in range(0, len(stream), 7):
                peer.sendall(stream[cut : cut + 7])
            peer.close()

        threading.Thread(target=trickle).start()
        assert [transport.receive(time.monotonic() + 5.0) for _ in frames] == frames
        with pytest.raises(WireError, match="closed the connection"):
            transport.receive(time.monotonic() + 5.0)
        transport.close()


def mutated(frame: bytes, noise: random.Random) -> bytes:
    """Flips, cuts, doubles or replaces some bytes."""
    data = bytearray(frame)
    for _ in range(noise.randint(1, 4)):
        at = noise.randrange(len(data)) if data else 0
        match noise.randrange(4):
            case 0 if data:
                data[at] ^= 1 << noise.randrange(8)
            case 1:
                del data[at : at + noise.randint(1, 9)]
            case 2:
                data[at:at] = noise.randbytes(noise.randint(1, 9))
            case _:
                data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


def test_500_broken_frames_crash_neither_end():
    noise = random.Random(7)
    box = KortexBox(KinematicPlant(load_embodiment("kinova").robots["arm"]), {"address": "127.0.0.1"})
    login = pack_request(1, 1, 0, 1, bytes.fromhex(CREATE_SESSION))
    number = unpack(box._handle(login, "tcp")).session
    requests = [
        login,
        pack_request(2, 132, number, 2, bytes.fromhex(JOINT_SPEEDS)),
        pack_request(2, 121, number, 2, bytes.fromhex(TWIST)),
        pack_request(2, 136, number, 3, bytes.fromhex(GRIPPER)),
    ]
    report = kortex_protocol.answer(Request(3, 3, number, 4, b""), number, bytes.fromhex(FEEDBACK))
    told = refused = 0
    for _ in range(500):
        reply = unpack(box._handle(mutated(noise.choice(requests), noise), "tcp"))
        told += reply.error != 0
        box.step(0.002)
        try:
            messages.parse("Feedback", unpack(mutated(report, noise)).payload)
        except (WireError, DecodeError):
            refused += 1
    assert told > 250 and refused > 250
    with pytest.raises(Malformed):
        kortex_protocol.read_request(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
    assert unpack(box._handle(pack_request(2, 112, number, 5, b""), "tcp")).error == 0
