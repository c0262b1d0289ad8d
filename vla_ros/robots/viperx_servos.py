"""The nine servos of a ViperX 300 6-DoF: who they are, their units, how they are set up, how the gripper's linkage moves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import DeviceError, StaleData
from vla_ros.robots import dynamixel_bus as dxl
from vla_ros.robots.dynamixel_bus import CURRENT_A, TICKS_PER_TURN, DynamixelBus, Register, value_of

JOINT_SERVOS = (1, 2, 4, 6, 7, 8)
SHADOWS = {3: 2, 5: 4}  # the second motor of shoulder and elbow: mounted the other way round, does what the first is told
GRIPPER = 9
REVERSED = (2, 4, 7)
NAMES = ("", "waist", "shoulder", "shoulder shadow", "elbow", "elbow shadow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
# torque per current at 12 V, from stall torque and stall current of the data sheets: XM540-W270 and XM430-W350
NM_PER_A = {**dict.fromkeys((1, 2, 3, 4, 5, 6, 7), 10.6 / 4.4), 8: 4.1 / 2.3, GRIPPER: 4.1 / 2.3}
_RAD = 2.0 * math.pi / TICKS_PER_TURN
_CENTRE = TICKS_PER_TURN // 2
_POSITION_MODE, _CURRENT_POSITION_MODE = 3, 5
_REVERSE, _TIME_BASED = 1, 4  # bits of DRIVE_MODE
_NO_SHADOW = 255
_TABLE_LENGTH = 136
_SHADOW_TICKS = 20
_EEPROM_END = 64
_BOOT_S = 3.0
_log = logging.getLogger(__name__)


def named(servo: int) -> str:
    """ "servo 4 (elbow)"."""
    return f"servo {servo} ({NAMES[servo]})"


def ticks_of(angle_rad: float) -> int:
    """A servo's ticks at an angle; 0 rad is the middle of its range."""
    return round(angle_rad / _RAD) + _CENTRE


def angle_of(ticks: int) -> float:
    """The inverse of `ticks_of`."""
    return (ticks - _CENTRE) * _RAD


@dataclass(frozen=True)
class Linkage:
    """Horn and arm between the gripper's motor and its fingers. finger = distance from the middle (m); opening = 2 (finger - closed_m)."""

    horn_m: float = 0.022
    arm_m: float = 0.036
    closed_m: float = 0.018

    def angle(self, width_m: float) -> float:
        """The motor's angle (rad) at an opening; the law of cosines in the triangle of horn, arm and finger."""
        finger = self.closed_m + 0.5 * width_m
        sine = (self.horn_m**2 + finger**2 - self.arm_m**2) / (2.0 * self.horn_m * finger)
        return math.asin(min(1.0, max(-1.0, sine)))

    def width(self, angle_rad: float) -> float:
        """The opening (m) at a motor angle."""
        across = self.horn_m * math.cos(angle_rad)
        return 2.0 * (self.horn_m * math.sin(angle_rad) + math.sqrt(max(0.0, self.arm_m**2 - across**2)) - self.closed_m)

    def current_units(self, force_n: float) -> int:
        """The motor current that presses with `force_n` between half open fingers."""
        angle, step = self.angle(0.04), 1e-4
        lever_m = (self.width(angle + step) - self.width(angle - step)) / (2.0 * step)  # both fingers
        return max(1, round(force_n * lever_m / NM_PER_A[GRIPPER] / CURRENT_A))


@dataclass(frozen=True)
class ServoSettings:
    """What the servos are set to. `gains`: position P, I, D in the servo's units; `profile_s`: time in which a goal is reached."""

    gains: tuple[int, int, int] = (800, 0, 0)
    profile_s: float = 0.03
    offsets_rad: tuple[float, ...] = (0.0,) * 6
    linkage: Linkage = Linkage()


class ServoSetup:
    """Brings the servos of one arm into the state in which they can be driven, without ever taking torque from one that holds.

    Args:
        bus: open. robot: position limits and grip force; without a gripper, servo 9 is left alone.
    """

    def __init__(self, bus: DynamixelBus, robot: RobotDescription, settings: ServoSettings) -> None:
        self._bus, self._robot, self._settings = bus, robot, settings
        self.servos = (*sorted({*JOINT_SERVOS, *SHADOWS}), *((GRIPPER,) if robot.gripper else ()))

    def find(self) -> None:
        """Raises DeviceError that names the servos that are not there."""
        missing = []
        for servo in self.servos:
            try:
                self._bus.ping(servo)
            except StaleData as error:
                missing.append(servo)
                if missing == list(self.servos[:3]):  # the bus is dead: no need to wait for the others
                    raise DeviceError(f"{self._bus.port}: no servo answers; is the arm's power on? ({error})", "device") from error
        if missing:
            names = ", ".join(map(named, missing))
            raise DeviceError(f"{self._bus.port}: {names} not answering; check the cable before the first of them, then its id", "device")

    def run(self, *, reboot: bool) -> None:
        """Configures, holds where the arm is. `reboot`: restart servos with a hardware error even if they still hold.

        Raises:
            DeviceError: servos that are faulty, or hold with another configuration.
        """
        tables = {servo: self._table(servo) for servo in self.servos}
        faulty = [servo for servo, table in tables.items() if value_of(table, 0, dxl.HARDWARE_ERROR)]
        for servo in faulty:
            if value_of(tables[servo], 0, dxl.TORQUE_ENABLE) and not reboot:
                faults = ", ".join(dxl.hardware_faults(value_of(tables[servo], 0, dxl.HARDWARE_ERROR)))
                raise DeviceError(f"{self._bus.port}: {named(servo)}: {faults}; support the arm and switch its power off and on", faults)
            self._restart(servo)
        tables |= {servo: self._table(servo) for servo in (faulty and self.servos)}
        self._configure(tables)
        for servo in self.servos:
            for register, value in self._volatile(servo).items():
                self._bus.write(servo, register, value)
        self._engage()

    def _restart(self, servo: int) -> None:
        _log.warning("%s: %s is restarted after a hardware error", self._bus.port, named(servo))
        self._bus.reboot(servo)
        deadline = time.monotonic() + _BOOT_S
        while True:
            try:
                self._bus.ping(servo)
                break
            except StaleData:
                if time.monotonic() > deadline:
                    raise
        if status := self._bus.read(servo, dxl.HARDWARE_ERROR):
            faults = ", ".join(dxl.hardware_faults(status))
            raise DeviceError(
                f"{self._bus.port}: {named(servo)}: {faults} again after a restart; let it cool, check load and supply", faults
            )

    def _table(self, servo: int) -> bytes:
        return self._bus.read_block(servo, 0, _TABLE_LENGTH)

    def _permanent(self, servo: int) -> dict[Register, int]:
        """EEPROM values; SECONDARY_ID is set last."""
        main = SHADOWS.get(servo, servo)
        reverse = (main in REVERSED) != (servo in SHADOWS)
        values = {dxl.RETURN_DELAY: 0, dxl.DRIVE_MODE: _TIME_BASED | (_REVERSE if reverse else 0)}
        if servo == GRIPPER:
            return values | {dxl.OPERATING_MODE: _CURRENT_POSITION_MODE, dxl.SECONDARY_ID: _NO_SHADOW}
        joint = JOINT_SERVOS.index(main)
        offset = self._settings.offsets_rad[joint]
        low, high = self._robot.position_min_rad[joint] + offset, self._robot.position_max_rad[joint] + offset
        return values | {
            dxl.OPERATING_MODE: _POSITION_MODE,
            dxl.MAX_POSITION: min(TICKS_PER_TURN - 1, ticks_of(high)),
            dxl.MIN_POSITION: max(0, ticks_of(low)),
            dxl.SECONDARY_ID: SHADOWS.get(servo, _NO_SHADOW),
        }

    def _volatile(self, servo: int) -> dict[Register, int]:
        """RAM values."""
        p, i, d = self._settings.gains
        profile_ms = round(self._settings.profile_s * 1e3)
        values = {dxl.PROFILE_VELOCITY: profile_ms, dxl.PROFILE_ACCELERATION: profile_ms // 3}
        if servo == GRIPPER:
            return {dxl.GOAL_CURRENT: self._settings.linkage.current_units(self._robot.gripper.force_n), dxl.PROFILE_VELOCITY: 0}
        return values | {dxl.POSITION_P_GAIN: p, dxl.POSITION_I_GAIN: i, dxl.POSITION_D_GAIN: d}

    def _configure(self, tables: Mapping[int, bytes]) -> None:
        changed = [servo for servo in self.servos if self._differences(servo, tables[servo])]
        for servo in changed:
            if value_of(tables[servo], 0, dxl.TORQUE_ENABLE):
                what = ", ".join(str(register.address) for register in self._differences(servo, tables[servo]))
                raise DeviceError(
                    f"{self._bus.port}: {named(servo)} holds the arm, but with other settings (registers {what}), and changing them would"
                    " drop it; support the arm and switch its power off and on",
                    "device",
                )
        # as long as a shadow listens to its first motor's id, it would take that one's settings
        for servo in SHADOWS if changed else ():
            self._bus.write(servo, dxl.SECONDARY_ID, _NO_SHADOW)
        for servo in self.servos if changed else ():
            for register, value in self._differences(servo, self._table(servo)).items():
                if register != dxl.SECONDARY_ID:
                    self._bus.write(servo, register, value)
        if changed:
            self._align_shadows()
        for servo, main in SHADOWS.items() if changed else ():
            self._bus.write(servo, dxl.SECONDARY_ID, main)

    def _differences(self, servo: int, table: bytes) -> dict[Register, int]:
        return {register: value for register, value in self._permanent(servo).items() if value_of(table, 0, register) != value}

    def _align_shadows(self) -> None:
        """Two motors on one joint that read different angles would push against each other: the shadow takes the first one's angle."""
        for servo, main in SHADOWS.items():
            apart = self._bus.read(main, dxl.PRESENT_POSITION) - self._bus.read(servo, dxl.PRESENT_POSITION)
            if abs(apart) > _SHADOW_TICKS:
                offset = self._bus.read(servo, dxl.HOMING_OFFSET) + apart
                _log.warning("%s: %s was %d ticks off, its homing offset is now %d", self._bus.port, named(servo), apart, offset)
                self._bus.write(servo, dxl.HOMING_OFFSET, offset)

    def _engage(self) -> None:
        """Goals where the joints are, then torque."""
        for servo in (*JOINT_SERVOS, *self.servos[8:]):
            self._bus.write(servo, dxl.GOAL_POSITION, self._within(servo, self._bus.read(servo, dxl.PRESENT_POSITION)))
        for servo in self.servos:
            self._bus.write(servo, dxl.TORQUE_ENABLE, 1)

    def _within(self, servo: int, ticks: int) -> int:
        if servo == GRIPPER:
            return ticks
        limits = self._permanent(servo)
        return min(limits[dxl.MAX_POSITION], max(limits[dxl.MIN_POSITION], ticks))


def effort_nm(current: Mapping[int, int], servos: Iterable[int] = JOINT_SERVOS) -> np.ndarray:
    """Joint torques [6] N m from the motor currents (units) by servo; a joint with two motors has the sum."""
    by_servo: dict[int, float] = {}
    for servo, units in current.items():
        main = SHADOWS.get(servo, servo)
        by_servo[main] = by_servo.get(main, 0.0) + units * CURRENT_A * NM_PER_A[servo]
    return np.array([by_servo.get(servo, 0.0) for servo in servos])


def joint_goals(position_rad: Sequence[float], offsets_rad: Sequence[float]) -> dict[int, int]:
    """Goal ticks by servo of joint positions [6] rad; shadows follow by themselves."""
    return {servo: ticks_of(p + offset) for servo, p, offset in zip(JOINT_SERVOS, position_rad, offsets_rad, strict=True)}
