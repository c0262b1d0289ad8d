"""Arms from their URDF behind the firmware of their own protocol, in one MuJoCo scene."""

from __future__ import annotations

import time
from collections.abc import Mapping

import mujoco
import numpy as np

from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import VlaError
from vla_ros.core.rig import Rig
from vla_ros.sim.arms import TIMESTEP_S, arm_scene
from vla_ros.sim.layout import ArmNames, arm_names
from vla_ros.sim.plant import Firmware, Measurement
from vla_ros.sim.render import compile_scene

# The device's end of the protocol that a rig's driver speaks.
FIRMWARE: dict[str, str] = {
    "kinova": "vla_ros.sim.kortex_box:KortexBox",
    "piper": "vla_ros.sim.piper_bus:PiperBus",
    "viperx": "vla_ros.sim.dynamixel_servos:DynamixelServos",
}
_FINGER_M_S = 0.05
_MEASURE_STEPS = 2


class ServoPlant:
    """Implements `plant.Plant` for one arm of the scene. `apply` and `look` belong to the physics thread."""

    def __init__(self, robot: RobotDescription, names: ArmNames, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self.robot = robot
        self._model, self._data = model, data
        self._qpos = np.array([model.joint(name).qposadr[0] for name in names.joints])
        self._dof = np.array([model.joint(name).dofadr[0] for name in names.joints])
        self._servos = np.array([model.actuator(name).id for name in names.joints])
        self._finger_qpos = np.array([model.joint(name).qposadr[0] for name in names.fingers])
        self._finger_servos = np.array([model.actuator(name).id for name in names.fingers])
        self._target: np.ndarray | None = None
        self._grip = 0.0, 40.0
        self._finger_m = 0.0
        self.commanded_rad_s = 0.0
        self.rest(robot.gripper.width_max_m if robot.gripper else 0.0)

    def measure(self) -> Measurement:
        return self._measured

    def drive(self, position_rad: np.ndarray) -> None:
        if self._target is not None:
            self._target = np.array(position_rad, dtype=np.float64)

    def grip(self, width_m: float, force_n: float) -> None:
        self._grip = width_m, force_n

    def power(self, on: bool) -> None:
        """Off: the servos follow the joints instead of holding them."""
        self._target = self._measured.position if on else None

    def rest(self, width_m: float) -> None:
        """Holds where the joints are now."""
        self._target = self._data.qpos[self._qpos].copy()
        self._data.ctrl[self._servos] = self._target
        self._grip, self._finger_m = (width_m, self._grip[1]), width_m / 2
        self._data.ctrl[self._finger_servos] = self._finger_m
        self.look()

    def apply(self, dt_s: float) -> None:
        """Passes the targets to the servos."""
        target = self._data.qpos[self._qpos] if self._target is None else self._target
        self.commanded_rad_s = float(np.linalg.norm(target - self._data.ctrl[self._servos])) / dt_s
        self._data.ctrl[self._servos] = target
        width_m, force_n = self._grip
        # The fingers' goal runs ahead of them no farther than the force limit needs, so that opening starts at once.
        now = float(self._data.qpos[self._finger_qpos].sum()) / 2
        self._finger_m = float(np.clip(self._finger_m, now - 0.03, now + 0.004))
        self._finger_m += float(np.clip(width_m / 2 - self._finger_m, -_FINGER_M_S * dt_s, _FINGER_M_S * dt_s))
        self._data.ctrl[self._finger_servos] = self._finger_m
        self._model.actuator_forcerange[self._finger_servos] = (-force_n, force_n)

    def look(self) -> None:
        """Takes a measurement."""
        data = self._data
        force_n = float(np.abs(data.actuator_force[self._finger_servos]).mean())
        self._measured = Measurement(
            time.time_ns(), data.qpos[self._qpos].copy(), data.qvel[self._dof].copy(), data.qfrc_actuator[self._dof].copy(),
            max(0.0, float(data.qpos[self._finger_qpos].sum())), force_n,
        )  # fmt: skip


class ServoEngine:
    """Implements `engine.Engine`: one plant and one firmware an arm, by the rig's drivers."""

    step_s = TIMESTEP_S

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.arms = arm_names(rig.embodiment)
        self._firmware: dict[str, Firmware] = {}

    def start(self) -> None:
        self.model = compile_scene(arm_scene(self._rig.embodiment))
        self.data = mujoco.MjData(self.model)
        self._steps = 0
        robots = self._rig.embodiment.robots
        for arm, names in self.arms.items():
            for joint, home in zip(names.joints, robots[arm].home_rad, strict=True):
                self.data.joint(joint).qpos[0] = home
        mujoco.mj_forward(self.model, self.data)
        self._plants = {arm: ServoPlant(robots[arm], names, self.model, self.data) for arm, names in self.arms.items()}
        try:
            for arm, plant in self._plants.items():
                robot = self._rig.robots[arm]
                firmware = load_device(FIRMWARE, robot.driver)(plant, robot.options, **self._rig.simulation.firmware)
                firmware.start()
                self._firmware[arm] = firmware
        except VlaError:
            self.close()
            raise

    def step(self) -> None:
        for arm, plant in self._plants.items():
            self._firmware[arm].step(self.step_s)
            plant.apply(self.step_s)
        mujoco.mj_step(self.model, self.data)
        self._steps += 1
        if self._steps % _MEASURE_STEPS == 0:
            for plant in self._plants.values():
                plant.look()

    def furnish(self, drawer: bool) -> None:
        """There is but one scene."""

    def rest(self, widths_m: Mapping[str, float]) -> None:
        for arm, plant in self._plants.items():
            plant.rest(widths_m[arm])
            self._firmware[arm].rest()

    def commanded_rad_s(self) -> float:
        return float(np.linalg.norm([plant.commanded_rad_s for plant in self._plants.values()]))

    def close(self) -> None:
        for firmware in self._firmware.values():
            firmware.close()
        self._firmware.clear()
