"""One simulated X-series servo: its control table and what may be done to it. Addresses: Robotis e-manual, XM430 / XM540."""

from __future__ import annotations

import math
import time

from vla_ros.sim.dynamixel_protocol import ACCESS_ERROR, ALERT, LIMIT_ERROR, RANGE_ERROR

MODEL, FIRMWARE, ID, BAUD, RETURN_DELAY, DRIVE_MODE, OPERATING_MODE, SECONDARY_ID = 0, 6, 7, 8, 9, 10, 11, 12
HOMING_OFFSET, CURRENT_LIMIT, MAX_POSITION, MIN_POSITION, SHUTDOWN = 20, 38, 48, 52, 63
TORQUE_ENABLE, HARDWARE_ERROR, GOAL_CURRENT = 64, 70, 102
PROFILE_VELOCITY, GOAL_POSITION, REALTIME_TICK = 112, 116, 120
PRESENT_CURRENT, PRESENT_VELOCITY, PRESENT_POSITION, PRESENT_VOLTAGE, PRESENT_TEMPERATURE = 126, 128, 132, 144, 146
SIZE = 147
BAUD_RATES = (9600, 57600, 115200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
VOLTAGE, OVERHEATING, ENCODER, SHOCK, OVERLOAD = 0x01, 0x04, 0x08, 0x10, 0x20  # bits of HARDWARE_ERROR
TICKS_PER_TURN, CENTRE = 4096, 2048
_EEPROM_END = 64
_READ_ONLY = bytes(address < 7 or address == HARDWARE_ERROR or address >= REALTIME_TICK for address in range(SIZE))
_MODES = (0, 1, 3, 4, 5, 16)
_POSITION_MODE = 3
_BOOT_S = 0.3
_VELOCITY_UNIT = 0.229 * 2.0 * math.pi / 60.0
# address, length, value after the factory's hands
_EEPROM = ((BAUD, 1, 3), (RETURN_DELAY, 1, 250), (OPERATING_MODE, 1, 3), (SECONDARY_ID, 1, 255), (CURRENT_LIMIT, 2, 1193),
           (MAX_POSITION, 4, 4095), (SHUTDOWN, 1, 0x34))  # fmt: skip
_RAM = ((68, 1, 2), (80, 2, 0), (82, 2, 0), (84, 2, 800))


class Servo:
    """A servo whose shaft stands at `angle_rad`.

    Args:
        number: its id. model: its model number.
        mounting: 1 or -1, which way it turns for a positive joint angle when DRIVE_MODE is not reversed.
    """

    def __init__(self, number: int, model: int, mounting: int) -> None:
        self.number, self._mounting = number, mounting
        self.table = bytearray(SIZE)
        self._put(MODEL, 2, model)
        self._put(FIRMWARE, 1, 45)
        self._put(ID, 1, number)
        for address, length, value in _EEPROM:
            self._put(address, length, value)
        self._ready_s = 0.0
        self.reset()

    def reboot(self) -> None:
        """Starts anew: it is silent for a while, then as after `reset`."""
        self.reset()
        self._ready_s = time.monotonic() + _BOOT_S

    def reset(self) -> None:
        """RAM as after power-up: torque off, no hardware error. What a dip of the supply does."""
        self.table[_EEPROM_END:] = bytes(SIZE - _EEPROM_END)
        for address, length, value in _RAM:
            self._put(address, length, value)
        self._put(GOAL_CURRENT, 2, self.get(CURRENT_LIMIT, 2))
        self._put(PRESENT_VOLTAGE, 2, 120)
        self._put(PRESENT_TEMPERATURE, 1, 35)

    @property
    def awake(self) -> bool:
        return time.monotonic() >= self._ready_s

    @property
    def torque(self) -> bool:
        return bool(self.table[TORQUE_ENABLE])

    @property
    def alert(self) -> int:
        """The bit that every answer of a servo with a hardware error has."""
        return ALERT if self.table[HARDWARE_ERROR] else 0

    @property
    def baud(self) -> int:
        return BAUD_RATES[min(self.table[BAUD], len(BAUD_RATES) - 1)]

    @property
    def goal_rad(self) -> float:
        """The goal as an angle of the joint."""
        return self._angle(self.get(GOAL_POSITION, 4, signed=True))

    def goals(self) -> bytes:
        """Goal current, profile and goal position, as they stand in the table."""
        return bytes(self.table[GOAL_CURRENT : GOAL_POSITION + 4])

    def rest(self) -> None:
        """The goal is where the shaft is."""
        self.table[GOAL_POSITION : GOAL_POSITION + 4] = self.table[PRESENT_POSITION : PRESENT_POSITION + 4]

    def raise_error(self, bit: int) -> None:
        """A hardware error; those that SHUTDOWN names take the torque."""
        self.table[HARDWARE_ERROR] |= bit
        if bit & self.table[SHUTDOWN]:
            self.table[TORQUE_ENABLE] = 0

    def measured(self, angle_rad: float, velocity_rad_s: float, current: int) -> None:
        """Fills in what the servo measures, as far as its registers go: angle and speed of the joint, current in its units."""
        turn = self._turn()
        self._put(REALTIME_TICK, 2, int(time.monotonic() * 1e3) & 0x7FFF)
        self._put(PRESENT_CURRENT, 2, _clipped(turn * current, 2))
        self._put(PRESENT_VELOCITY, 4, _clipped(round(turn * velocity_rad_s / _VELOCITY_UNIT), 4))
        self._put(PRESENT_POSITION, 4, _clipped(self._ticks(angle_rad), 4))

    def profile_s(self, distance_rad: float) -> float:
        """How long a motion takes: PROFILE_VELOCITY is a time (ms) or a speed; 0 is at once. Acceleration phases are left out."""
        profile = self.get(PROFILE_VELOCITY, 4)
        if self.table[DRIVE_MODE] & 4 or not profile:
            return profile * 1e-3
        return abs(distance_rad) / (profile * _VELOCITY_UNIT)

    def write(self, address: int, data: bytes) -> int:
        """Returns the error of a status packet, 0 when it is done."""
        if not data or address + len(data) > SIZE:
            return RANGE_ERROR
        if any(_READ_ONLY[address : address + len(data)]) or (address < _EEPROM_END and self.torque):
            return ACCESS_ERROR
        if not self._allowed(address, data):
            return LIMIT_ERROR
        engaged = self.torque
        self.table[address : address + len(data)] = data
        if self.torque and self.table[HARDWARE_ERROR] & self.table[SHUTDOWN]:
            self.table[TORQUE_ENABLE] = 0
        if self.torque and not engaged:
            self.rest()
        return 0

    def get(self, address: int, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.table[address : address + length], "little", signed=signed)

    def _allowed(self, address: int, data: bytes) -> bool:
        value = int.from_bytes(data, "little", signed=True)
        if address == OPERATING_MODE:
            return data[0] in _MODES
        if address == GOAL_POSITION and len(data) == 4 and self.table[OPERATING_MODE] == _POSITION_MODE:
            return self.get(MIN_POSITION, 4) <= value <= self.get(MAX_POSITION, 4)
        if address == GOAL_CURRENT and len(data) == 2:
            return abs(value) <= self.get(CURRENT_LIMIT, 2)
        if address in (MAX_POSITION, MIN_POSITION):
            return 0 <= value < TICKS_PER_TURN
        return address != TORQUE_ENABLE or data[0] in (0, 1)

    def _put(self, address: int, length: int, value: int) -> None:
        self.table[address : address + length] = int(value).to_bytes(length, "little", signed=value < 0)

    def _turn(self) -> int:
        return -self._mounting if self.table[DRIVE_MODE] & 1 else self._mounting

    def _ticks(self, angle_rad: float) -> int:
        return CENTRE + self.get(HOMING_OFFSET, 4, signed=True) + round(self._turn() * angle_rad * TICKS_PER_TURN / (2.0 * math.pi))

    def _angle(self, ticks: int) -> float:
        return self._turn() * (ticks - CENTRE - self.get(HOMING_OFFSET, 4, signed=True)) * 2.0 * math.pi / TICKS_PER_TURN


def _clipped(value: int, length: int) -> int:
    """The nearest number that fits a signed register of `length` bytes."""
    most = 1 << (8 * length - 1)
    return max(-most, min(most - 1, value))
