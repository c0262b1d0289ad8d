"""The nine servos of a ViperX in front of a simulated arm: Dynamixel Protocol 2.0 on a pseudo-terminal, with the wire's real time.

Until a host first switches torque on, the arm rests as in its cradle: it stays where it is.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping

import numpy as np

from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.sim import dynamixel_protocol as protocol
from vla_ros.sim import dynamixel_servo as registers
from vla_ros.sim.dynamixel_instructions import execute
from vla_ros.sim.dynamixel_port import PtyPort
from vla_ros.sim.dynamixel_protocol import Instruction
from vla_ros.sim.dynamixel_servo import Servo
from vla_ros.sim.fingers import Fingers
from vla_ros.sim.plant import Plant

_XM540, _XM430 = 1120, 1020  # model numbers (W270, W350)
# id, model, which way it is mounted
_ARM = ((1, _XM540, 1), (2, _XM540, -1), (3, _XM540, 1), (4, _XM540, -1), (5, _XM540, 1), (6, _XM540, 1), (7, _XM540, -1), (8, _XM430, 1))
_JOINTS, _SHADOWS, _GRIPPER, _ELBOW = (1, 2, 4, 6, 7, 8), {2: 3, 4: 5}, 9, 4
_NM_PER_UNIT = {_XM540: 10.6 / 4.4 * 2.69e-3, _XM430: 4.1 / 2.3 * 2.69e-3}  # of one unit of current
_BITS_PER_BYTE = 10
_LATE_S = 0.6
_HARDWARE = {"overload": registers.OVERLOAD, "overheating": registers.OVERHEATING, "voltage": registers.VOLTAGE}


class DynamixelServos:
    """Implements `sim.plant.Firmware`. `inject` of faults: those with a servo's name hit the elbow's first motor (id 4).

    Args:
        plant: six joints and, if its robot has one, a gripper.
        options: the rig's for the driver: port, baud, offsets_rad, horn_m, arm_m, finger_closed_m.
        usb_latency_s: the adapter's latency timer.
    """

    FAULTS = (
        "silent",
        "unplugged",
        "one_servo_dead",
        "bad_crc",
        "garbage",
        "overload",
        "overheating",
        "voltage",
        "torque_lost",
        "frozen",
        "slow",
        "limit",  # the arm runs into something: no joint moves any more
    )

    def __init__(self, plant: Plant, options: Mapping[str, object], *, usb_latency_s: float = 0.001) -> None:
        self._plant, self._usb_latency_s = plant, usb_latency_s
        self._port_name = str(options["port"])
        self._offsets = dict(zip(_JOINTS, options.get("offsets_rad", (0.0,) * 6), strict=True))
        self._fingers = Fingers(options)
        gripper = ((_GRIPPER, _XM430, 1),) if plant.robot.gripper else ()
        self.servos = {number: Servo(number, model, mounting) for number, model, mounting in (*_ARM, *gripper)}
        self._units = {number: 1.0 / _NM_PER_UNIT[model] for number, model, _ in (*_ARM, *gripper)}
        baud = int(options.get("baud", 1_000_000))
        if baud not in registers.BAUD_RATES:
            raise ConfigError(f"{self._port_name}: {baud} baud; {did_you_mean(str(baud), map(str, registers.BAUD_RATES))}")
        for servo in self.servos.values():
            servo.table[registers.BAUD] = registers.BAUD_RATES.index(baud)
        self._parser, self._random = protocol.Parser(), random.Random(0)
        self._setpoint = [float(angle) for angle in plant.measure().position]
        self._goal, self._left_s = list(self._setpoint), [0.0] * len(_JOINTS)
        self._known: list[tuple[bool, bytes]] = [(False, b"")] * len(_JOINTS)
        self._gripper_known = b""
        self._powered, self._engaged = True, False
        self._fault, self._stop_rad = "", list(self._setpoint)
        self._free_s = 0.0
        self._closing = False
        self._port: PtyPort | None = None
        self._thread: threading.Thread | None = None
        self._measure()

    def start(self) -> None:
        """Raises DeviceError when the port is taken."""
        self._port = PtyPort(self._port_name)
        self._port.plug()
        self._thread = threading.Thread(target=self._serve, args=(self._port,), name=f"servos {self._port_name}", daemon=True)
        self._thread.start()

    def inject(self, fault: str) -> None:
        if fault not in self.FAULTS:
            raise ConfigError(f"no fault '{fault}'; {did_you_mean(fault, self.FAULTS)}")
        elbow = self.servos[_ELBOW]
        if fault in _HARDWARE:
            elbow.raise_error(_HARDWARE[fault])
        elif fault == "torque_lost":
            elbow.reset()
        else:
            self._stop_rad = list(self._setpoint)
            self._fault = fault
        if fault == "unplugged":
            self._port.unplug()

    def clear(self) -> None:
        self._fault = ""
        if self._port is not None:
            self._port.plug()

    def close(self) -> None:
        self._closing = True
        port, self._port = self._port, None
        if port is not None:
            port.wake()
            self._thread.join()
            port.close()

    # The servos' own loop.

    def step(self, dt_s: float) -> None:
        """Moves the goals along their profiles and hands them to the plant."""
        if self._fault == "frozen":
            return
        moving = limp = False
        for i, number in enumerate(_JOINTS):
            servo = self.servos[number]
            known = self._state(servo)
            if known != self._known[i]:
                self._begin(i, servo, engaging=servo.torque and not self._known[i][0])
                self._known[i] = known
            if not known[0]:
                limp = True
            elif self._left_s[i] > 0.0:
                moving = True
                self._setpoint[i] += (self._goal[i] - self._setpoint[i]) * min(1.0, dt_s / self._left_s[i])
                self._left_s[i] -= dt_s
        self._switch()
        if self._fault == "limit":
            self._setpoint = list(self._stop_rad)
        if self._engaged and (moving or limp):
            self._let_go()
            self._plant.drive(np.array(self._setpoint))
        self._step_gripper()

    def rest(self) -> None:
        """Somebody else moved the arm: every servo's goal is where it is now."""
        self._measure()
        self._setpoint = [float(angle) for angle in self._plant.measure().position]
        self._left_s = [0.0] * len(_JOINTS)
        for servo in self.servos.values():
            servo.rest()
        self._known = [self._state(self.servos[number]) for number in _JOINTS]
        if _GRIPPER in self.servos:
            self._gripper_known = self.servos[_GRIPPER].goals()

    def _begin(self, i: int, servo: Servo, *, engaging: bool) -> None:
        if engaging:
            self._setpoint[i] = float(self._plant.measure().position[i])
        self._goal[i] = servo.goal_rad - self._offsets[servo.number]
        self._left_s[i] = max(1e-9, servo.profile_s(self._goal[i] - self._setpoint[i]))

    @staticmethod
    def _state(servo: Servo) -> tuple[bool, bytes]:
        return servo.torque, servo.goals()

    def _switch(self) -> None:
        """Power of the arm as a whole: on while any joint has torque; one joint alone gives way by following where it is moved."""
        on = any(torque for torque, _ in self._known)
        self._engaged = self._engaged or on
        if self._engaged and on != self._powered:
            self._powered = on
            self._plant.power(on)

    def _let_go(self) -> None:
        position = self._plant.measure().position
        for i, (torque, _) in enumerate(self._known):
            if not torque:
                self._setpoint[i] = float(position[i])

    def _step_gripper(self) -> None:
        servo = self.servos.get(_GRIPPER)
        if servo is None or not servo.torque:
            return
        known = servo.goals()
        if known != self._gripper_known:
            self._gripper_known = known
            units = abs(servo.get(registers.GOAL_CURRENT, 2, signed=True))
            width_m = min(max(self._fingers.width_m(servo.goal_rad), 0.0), self._plant.robot.gripper.width_max_m)
            self._plant.grip(width_m, units / self._units[_GRIPPER] / self._fingers.lever_m)

    def _measure(self) -> None:
        """What all servos measure now."""
        measured = self._plant.measure()
        for i, number in enumerate(_JOINTS):
            angle, shadow = float(measured.position[i]) + self._offsets[number], _SHADOWS.get(number)
            current = round(float(measured.effort[i]) * self._units[number] / (2 if shadow else 1))
            for one in (number, shadow) if shadow else (number,):
                self.servos[one].measured(angle, float(measured.velocity[i]), current)
        if _GRIPPER in self.servos:
            angle = self._fingers.angle_rad(measured.gripper_width_m)
            current = round(-measured.gripper_force_n * self._fingers.lever_m * self._units[_GRIPPER])
            self.servos[_GRIPPER].measured(angle, 0.0, current)

    # The bus.

    def _serve(self, port: PtyPort) -> None:
        while not self._closing:
            for instruction in self._parser.feed(port.read()):
                self._answer(instruction, port)

    def _answer(self, instruction: Instruction, port: PtyPort) -> None:
        baud = port.baud()
        if not baud or self._fault in ("silent", "unplugged"):
            return
        byte_s = _BITS_PER_BYTE / baud
        self._free_s = max(self._free_s, time.monotonic()) + instruction.wire_bytes * byte_s
        if instruction.code not in (protocol.READ, protocol.SYNC_READ, protocol.FAST_SYNC_READ, protocol.BULK_READ):
            _sleep_until(self._free_s)
        present = {
            number: servo
            for number, servo in self.servos.items()
            if servo.baud == baud and servo.awake and not (self._fault == "one_servo_dead" and number == _ELBOW)
        }
        if self._fault != "frozen":
            self._measure()
        answers = execute(instruction, present)
        if not answers:
            return
        delays_s = sum(self.servos[number].table[registers.RETURN_DELAY] * 2e-6 for number, _ in answers)
        data = b"".join(self._spoilt(answer) for _, answer in answers)
        self._free_s += delays_s + len(data) * byte_s
        if self._fault == "slow":
            threading.Timer(_LATE_S, port.write, (data,)).start()
        else:
            _sleep_until(self._free_s + self._usb_latency_s)
            port.write(data)

    def _spoilt(self, answer: bytes) -> bytes:
        if self._fault == "bad_crc":
            return answer[:-1] + bytes((answer[-1] ^ 0xFF,))
        return self._random.randbytes(len(answer)) if self._fault == "garbage" else answer


def _sleep_until(deadline_s: float) -> None:
    left_s = deadline_s - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)
