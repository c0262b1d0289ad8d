"""A Gen3's base in front of a simulated arm: sessions, high-level servoing at 40 Hz, faults that latch, and the 2F-85.

What the base does about its own trajectories, low-level servoing and the web app is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.sim import kortex_protocol as wire
from vla_ros.sim.kortex_protocol import Malformed, Refused, Report, Request
from vla_ros.sim.kortex_server import KortexServer
from vla_ros.sim.kortex_servo import JointServo
from vla_ros.sim.plant import Plant

_TCP_PORT, _UDP_PORT = 10000, 10001
_FAULTED, _READY, _MOVED = 4, 7, 9  # arm states
_SINGLE_LEVEL, _POSITION_MODE = 2, 3
_JOINT_FAULT, _EMERGENCY_STOP, _MAXIMUM_TORQUE = 1 << 4, 1 << 23, 1 << 5


@dataclass
class Client:
    """One session; `seen_s` is when its last frame came."""

    transport: str
    timeout_s: float
    motion_timeout_s: float
    seen_s: float


class KortexBox:
    """Implements `sim.plant.Firmware`.

    Args:
        plant: the arm. options: of the driver: `address`, and `tcp_port`, `udp_port` where they are not Kinova's.
        users: who may log in, name -> password.
    """

    FAULTS = (*KortexServer.SPOILS, "error_frame", "session_lost", "estop", "arm_fault", "link_cut", "frozen")

    def __init__(self, plant: Plant, options: Mapping[str, object], *, users: Mapping[str, str] | None = None) -> None:
        self._plant, self._users = plant, dict(users or {"admin": "admin"})
        self._joints = len(plant.robot.joints)
        self._owner = self._number = 0  # session that moves the arm, newest session
        self._servo = JointServo(plant, self._owner_alive)
        self._cycle = 0
        self._base_faults, self._joint_faults = 0, [0] * self._joints
        self._mode = _SINGLE_LEVEL
        self._clients: dict[int, Client] = {}
        self._injected: set[str] = set()
        self._frozen = b""
        self._lock = threading.Lock()
        ports = int(options.get("tcp_port", _TCP_PORT)), int(options.get("udp_port", _UDP_PORT))
        self._server = KortexServer(str(options["address"]), ports, self._handle)
        self._functions = {
            (wire.SESSION, 2): self._close_session,
            (wire.SESSION, 3): lambda *_: b"",
            (wire.BASE, 112): self._stop,
            (wire.BASE, 121): self._twist,
            (wire.BASE, 132): self._joint_speeds,
            (wire.BASE, 136): self._gripper,
            (wire.BASE, 145): self._emergency_stop,
            (wire.BASE, 146): self._clear_faults,
            (wire.BASE, 152): self._set_mode,
            (wire.BASE, 153): lambda *_: wire.varint(1, self._mode),
            (wire.BASE, 175): lambda *_: wire.varint(1, self._state()),
            (wire.CYCLIC, 3): self._feedback,
        }

    def start(self) -> None:
        self._server.open()

    def step(self, dt_s: float) -> None:
        self._cycle += 1
        if self._base_faults:
            self._servo.stop()
        self._servo.step(dt_s)

    def rest(self) -> None:
        self._servo.rest()

    def inject(self, fault: str) -> None:
        if fault not in self.FAULTS:
            raise ConfigError(f"'{fault}' is no fault of this device; {did_you_mean(fault, self.FAULTS)}")
        with self._lock:
            self._injected.add(fault)
            self._frozen = b""
            if fault in KortexServer.SPOILS:
                self._server.spoil = fault
            elif fault == "session_lost":
                self._clients.clear()
            self._latch()
        if fault == "link_cut":
            self._server.cut()

    def clear(self) -> None:
        was_cut = "link_cut" in self._injected
        with self._lock:
            self._injected.clear()
            self._server.spoil = ""
        if was_cut:
            self._server.open()

    def close(self) -> None:
        self._server.close()

    # One frame.

    def _handle(self, frame: bytes, transport: str) -> bytes | None:
        try:
            request = wire.read_request(frame)
        except Malformed as error:
            return wire.refusal(Request(0, 0, 0, 0, b""), wire.PROTOCOL_SERVER, wire.FRAME_DECODING, str(error))
        with self._lock:
            try:
                if (request.service, request.function) == (wire.SESSION, 1):
                    return wire.answer(request, self._create_session(request, transport))
                return wire.answer(request, request.session, self._call(request, transport))
            except Malformed as error:
                return wire.refusal(request, wire.PROTOCOL_SERVER, wire.PAYLOAD_DECODING, str(error))
            except Refused as error:
                return wire.refusal(request, error.error, error.sub_error, str(error))

    def _create_session(self, request: Request, transport: str) -> int:
        info = wire.message(request.payload, username=(1, bytes), session_ms=(2, int), password=(3, bytes), motion_ms=(4, int))
        username = info["username"].decode(errors="replace")
        if username not in self._users:
            raise Refused(wire.USER_NOT_FOUND, f"no user {username}")
        if info["password"] != self._users[username].encode():
            raise Refused(wire.INVALID_PASSWORD, "wrong password")
        self._number = self._number % 0xFFFF + 1
        now_s = time.monotonic()
        self._clients = {number: client for number, client in self._clients.items() if now_s - client.seen_s <= client.timeout_s}
        self._clients[self._number] = Client(transport, info["session_ms"] * 1e-3, info["motion_ms"] * 1e-3, now_s)
        return self._number

    def _call(self, request: Request, transport: str) -> bytes:
        now_s, client = time.monotonic(), self._clients.get(request.session)
        if client is None or client.transport != transport or now_s - client.seen_s > client.timeout_s:
            self._clients.pop(request.session, None)
            raise Refused(wire.INVALID_SESSION, f"no session {request.session}", wire.PROTOCOL_SERVER)
        client.seen_s = now_s
        function = self._functions.get((request.service, request.function))
        if function is None:
            known = any(service == request.service for service, _ in self._functions)
            sub_error = wire.UNSUPPORTED_METHOD if known else wire.UNSUPPORTED_SERVICE
            raise Refused(sub_error, f"service {request.service}, function {request.function}", wire.PROTOCOL_SERVER)
        if request.service == wire.BASE and "error_frame" in self._injected:
            raise Refused(wire.METHOD_FAILED, "injected")
        return function(request)

    # Functions.

    def _close_session(self, request: Request) -> bytes:
        del self._clients[request.session]
        return b""

    def _stop(self, _: Request) -> bytes:
        self._servo.stop()
        return b""

    def _joint_speeds(self, request: Request) -> bytes:
        self._check_control(request)
        self._servo.move(wire.read_joint_speeds(request.payload, self._joints))
        self._owner = request.session
        return b""

    def _twist(self, request: Request) -> bytes:
        self._check_control(request)
        self._servo.move_tcp(wire.read_twist(request.payload))
        self._owner = request.session
        return b""

    def _gripper(self, request: Request) -> bytes:
        self._check_ready()
        command = wire.message(request.payload, mode=(1, int), gripper=(2, bytes))
        fingers = wire.message(command["gripper"], fingers=(1, list))["fingers"]
        gripper = self._plant.robot.gripper
        if command["mode"] != _POSITION_MODE or len(fingers) != 1 or gripper is None:
            raise Refused(wire.INVALID_PARAM, f"mode {command['mode']}, {len(fingers)} fingers; only position mode, one finger")
        closed = float(np.clip(wire.message(fingers[0], value=(2, float))["value"], 0.0, 1.0))
        self._plant.grip(gripper.width_max_m - closed * (gripper.width_max_m - gripper.width_min_m), gripper.force_n)
        return b""

    def _emergency_stop(self, _: Request) -> bytes:
        self._base_faults |= _EMERGENCY_STOP
        return b""

    def _clear_faults(self, _: Request) -> bytes:
        self._base_faults, self._joint_faults = 0, [0] * self._joints
        self._latch()
        return b""

    def _set_mode(self, request: Request) -> bytes:
        if self._base_faults:
            raise Refused(wire.IN_FAULT, "clear the faults first")
        self._mode = wire.message(request.payload, mode=(1, int))["mode"]
        return b""

    def _feedback(self, _: Request) -> bytes:
        if "frozen" in self._injected and self._frozen:
            return self._frozen
        state, gripper = self._plant.measure(), self._plant.robot.gripper
        closed = 100.0 * (gripper.width_max_m - state.gripper_width_m) / (gripper.width_max_m - gripper.width_min_m) if gripper else 0.0
        self._frozen = Report(
            state=self._state(),
            base_faults=self._base_faults,
            joint_faults=tuple(self._joint_faults),
            position=np.degrees(state.position) % 360.0,
            velocity=np.degrees(state.velocity),
            torque=state.effort,
            closed=closed,
            acceleration=9.81 + 1e-4 * (self._cycle * 7919 % 1009),  # a sensor's noise: no two cycles are alike
        ).encode()
        return self._frozen

    def _state(self) -> int:
        return _FAULTED if self._base_faults else _MOVED if self._servo.moving else _READY

    def _owner_alive(self) -> bool:
        owner = self._clients.get(self._owner)
        return owner is not None and time.monotonic() - owner.seen_s <= owner.motion_timeout_s

    def _check_control(self, request: Request) -> None:
        self._check_ready()
        if self._servo.asked and self._owner != request.session and self._owner in self._clients:
            raise Refused(wire.NOT_IN_CONTROL, f"session {self._owner} moves the arm")

    def _check_ready(self) -> None:
        if self._base_faults & _EMERGENCY_STOP:
            raise Refused(wire.IN_EMERGENCY_STOP, "emergency stop")
        if self._base_faults:
            raise Refused(wire.IN_FAULT, f"fault bank 0x{self._base_faults:x}")
        if self._mode != _SINGLE_LEVEL:
            raise Refused(wire.WRONG_SERVOING_MODE, f"servoing mode {self._mode}")

    def _latch(self) -> None:
        """An injected fault stays until it is cleared, its bit until ClearFaults."""
        if "estop" in self._injected:
            self._base_faults |= _EMERGENCY_STOP
        if "arm_fault" in self._injected:
            self._base_faults |= _JOINT_FAULT
            self._joint_faults[2] |= _MAXIMUM_TORQUE
