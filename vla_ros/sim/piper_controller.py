"""What the main controller of a PiPer does with its frames: modes, enabling, interpolation, errors. No sockets, no threads.

After power-up the drives are disabled, but the plant holds: somebody has folded the arm, or supports it.
"""

from __future__ import annotations

import struct

import numpy as np

from vla_ros.sim import piper_frames as frames
from vla_ros.sim.plant import Plant

# Arm states of 0x2A1.
NORMAL, ESTOP, LIMIT, JOINT_COMM, BRAKE, COLLISION = 0x00, 0x01, 0x04, 0x05, 0x06, 0x07
_STATES = {"estop": ESTOP, "limit": LIMIT, "joint_comm": JOINT_COMM, "brake": BRAKE, "collision": COLLISION}
_CAN_MODE, _MOVE_J = 0x01, 0x01
_ENABLED, _COLLIDED = 0x40, 0x10  # bits of a drive's state
_ALL = (7, 0xFF)
_SPEED_RAD_S = np.array([3.14, 3.4, 3.14, 3.92, 3.92, 3.92])  # at 100 %: 180, 195, 180, 225 degrees a second in the data sheet
_ACCELERATION_RAD_S2 = 5.0  # the most that 0x475 can set
_RANGE_MARGIN_RAD = 1e-3
_FULL_TORQUE_NM = 1.0  # of the gripper; gives the embodiment's force_n


class PiperController:
    """One arm. `obey` belongs to the bus's thread, `step` to the physics'.

    FAULTS: `estop`, `joint_comm` (joint 3), `brake`, `collision` (joint 2), `limit` (joint 1) latch: while one is injected it cannot be
    reset, afterwards 0x475 (clear joint errors) or 0x150 (resume) does it, an emergency stop only the latter, and `limit` also the next
    target inside. `motor_disabled` takes the power from the drives and reports joint 4 disabled, until they are enabled again.
    """

    FAULTS = (*_STATES, "motor_disabled")

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        robot = plant.robot
        self._low = np.array(robot.position_min_rad) - _RANGE_MARGIN_RAD
        self._high = np.array(robot.position_max_rad) + _RANGE_MARGIN_RAD
        self._mode, self._move, self._speed = 0, 0, 0.0
        self._state, self._injected = NORMAL, ""
        self._enabled = [False] * 6
        self._powered = True  # or held by somebody, see above
        self._gripper_enabled = False
        self.gripper_torque_nm = 0.0
        self._asked: np.ndarray | None = None  # rad, what the last frames say
        self._target: np.ndarray | None = None  # rad, the last of them inside the limits; None: nothing since the drives were enabled
        self._setpoint, self._velocity = np.array(plant.measure().position), np.zeros(6)

    @property
    def status(self) -> bytes:
        """Payload of 0x2A1."""
        errors = {JOINT_COMM: 1 << 2, LIMIT: 1 << 8}.get(self._state, 0)
        moving = self._target is not None and bool(np.abs(self._target - self._plant.measure().position).max() > 0.01)
        return frames.status(self._mode, self._state, self._move, moving, errors)

    @property
    def drives(self) -> list[int]:
        """State bytes of 0x261-6."""
        states = [_ENABLED if enabled else 0 for enabled in self._enabled]
        states[1] |= _COLLIDED if self._state == COLLISION else 0
        return states

    @property
    def gripper_status(self) -> int:
        """State byte of 0x2A8 (bit 7: zeroed)."""
        return 0x80 | (_ENABLED if self._gripper_enabled else 0)

    def rest(self) -> None:
        """Somebody else moved the arm: forgets the target and holds where it is now."""
        self._asked = self._target = None
        if self._powered:
            self._hold()

    def inject(self, fault: str) -> None:
        self._injected = fault
        if fault == "motor_disabled":
            self._enabled = [True, True, True, False, True, True]
            self._give_way()
        else:
            self.latch(_STATES[fault])

    def clear(self) -> None:
        self._injected = ""

    def latch(self, state: int) -> None:
        """An error: the arm brakes, holds and ignores targets until it is reset."""
        self._state, self._asked, self._target = state, None, None
        if all(self._enabled):
            self._hold()

    def step(self, dt_s: float) -> None:
        """Moves the drives' set point towards the target: each joint as fast as its acceleration and the commanded speed allow."""
        target = self._target
        if target is None:
            return
        way = target - self._setpoint
        gain = _ACCELERATION_RAD_S2 * dt_s  # of speed in one step
        if np.abs(way).max() < gain * dt_s and np.abs(self._velocity).max() <= gain:
            setpoint, velocity = target, np.zeros(6)
        else:
            # so fast that, slower by `gain` from step to step, the set point ends on its target
            most = np.sqrt(gain**2 / 4 + 2 * _ACCELERATION_RAD_S2 * np.abs(way)) - gain / 2
            wanted = np.sign(way) * np.minimum(_SPEED_RAD_S * self._speed, most)
            velocity = self._velocity + np.clip(wanted - self._velocity, -gain, gain)
            setpoint = self._setpoint + velocity * dt_s
        if self._target is not None:  # an error may have come in from the bus's thread
            self._setpoint, self._velocity = setpoint, velocity
            self._plant.drive(setpoint)

    def obey(self, can_id: int, data: bytes) -> str:
        """Carries out one frame of 8 bytes; returns the answer as slcan lines, "" without one. What it does not know it ignores."""
        if frames.JOINTS_12 <= can_id <= frames.JOINTS_56:
            self._joints(can_id - frames.JOINTS_12, struct.unpack(">2i", data))
        elif can_id == frames.MODE:
            self._mode, self._move, self._speed = data[0], data[1], min(data[2], 100) / 100.0
        elif can_id == frames.GRIPPER:
            self._grip(*struct.unpack(">iHBB", data))
        elif can_id == frames.STOP:
            self._stop(data[0])
        elif can_id == frames.ENABLE:
            self._enable(data[0], data[1])
        elif can_id == frames.CONFIGURE_JOINT:
            if data[5] == frames.EFFECTIVE and self._state != ESTOP and self._injected not in _STATES:
                self._state = NORMAL
            return frames.line(frames.ACKNOWLEDGE, bytes([0x75, 0, 0, 0, 0, 0, 0, 0]))
        elif can_id == frames.QUERY_LIMITS:
            return self._limits(data[0], data[1])
        elif can_id == frames.QUERY_FIRMWARE:
            return frames.line(frames.FIRMWARE, b"S-V1.6-3") + frames.line(frames.FIRMWARE, b"_SIM\0\0\0\0")
        return ""

    def _hold(self) -> None:
        self._asked = self._target = None
        self._setpoint, self._velocity = np.array(self._plant.measure().position), np.zeros(6)
        self._plant.drive(self._setpoint)

    def _give_way(self) -> None:
        self._asked = self._target = None
        self._powered = False
        self._plant.power(False)

    def _joints(self, pair: int, millidegrees: tuple[int, int]) -> None:
        if self._mode != _CAN_MODE or self._move != _MOVE_J or not all(self._enabled):
            return
        if self._state not in (NORMAL, LIMIT) or self._injected in _STATES:
            return
        asked = np.array(self._setpoint if self._asked is None else self._asked)
        asked[2 * pair : 2 * pair + 2] = np.radians(np.array(millidegrees) * 1e-3)
        self._asked = asked
        inside = bool(((asked >= self._low) & (asked <= self._high)).all())
        self._state = NORMAL if inside else LIMIT
        if inside:
            self._target = asked

    def _grip(self, micrometres: int, millinewtonmetres: int, code: int, _zero: int) -> None:
        self._gripper_enabled = bool(code & 1)
        gripper = self._plant.robot.gripper
        if gripper is not None and self._gripper_enabled and self._state != ESTOP:
            self.gripper_torque_nm = millinewtonmetres * 1e-3
            width_m = min(max(micrometres * 1e-6, gripper.width_min_m), gripper.width_max_m)
            self._plant.grip(width_m, gripper.force_n * self.gripper_torque_nm / _FULL_TORQUE_NM)

    def _stop(self, code: int) -> None:
        """1 is the emergency stop; 2 resumes: all errors are cleared, and the drives lose their power (vendor's note)."""
        if code == 1:
            self.latch(ESTOP)
        elif code == 2 and self._injected not in _STATES:
            self._state = NORMAL
            self._enable(_ALL[0], 1)

    def _enable(self, motor: int, code: int) -> None:
        wanted = {1: False, 2: True}.get(code)
        if wanted is None or self._injected == "motor_disabled" or not (motor in _ALL or 1 <= motor <= 6):
            return
        before = all(self._enabled)
        self._enabled = [wanted if motor in _ALL or motor == i + 1 else enabled for i, enabled in enumerate(self._enabled)]
        if all(self._enabled) and not before:
            self._powered = True
            self._plant.power(True)
            self._hold()
        elif before and not all(self._enabled):
            self._give_way()

    def _limits(self, motor: int, content: int) -> str:
        if not 1 <= motor <= 6:
            return ""
        if content == 2:  # 0.01 rad/s2
            return frames.line(frames.ACCELERATION, struct.pack(">BH5x", motor, round(_ACCELERATION_RAD_S2 * 100)))
        robot, i = self._plant.robot, motor - 1
        high, low = (round(np.degrees(limits[i]) * 10) for limits in (robot.position_max_rad, robot.position_min_rad))
        return frames.line(frames.LIMITS, struct.pack(">BhhHx", motor, high, low, round(_SPEED_RAD_S[i] * 1e3)))
