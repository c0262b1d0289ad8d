"""The expert behind the policy protocol: it reads the truth from the simulator instead of looking. For tests of everything else."""

from __future__ import annotations

import time
from dataclasses import replace

import mujoco
import numpy as np

from vla_ros.core.channels import join
from vla_ros.core.embodiment import Embodiment, load_embodiment
from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec, SkillPlan
from vla_ros.sim.expert import CHANNELS, DT_S
from vla_ros.sim.ik import SceneIk
from vla_ros.sim.layout import arm_names, layout_of
from vla_ros.sim.mirror import MirrorReader, find_mirror
from vla_ros.sim.planner import Plan, plan
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import Task, parse_task


class ScriptPolicy:
    """Implements `core.interfaces.Policy` for the simulated table of any embodiment, in its control mode.

    Args:
        embodiment: one with a table (`layout.LAYOUTS`), driven by TCP poses or joint positions.
        address: of the simulation, as in the rig; None: the one in this ROS domain.
        rows: of a chunk, 0.1 s each.

    Raises:
        ConfigError: no table, or driven by joint velocities.
    """

    def __init__(self, embodiment: Embodiment | None = None, address: str | None = None, rows: int = 16) -> None:
        embodiment = embodiment or load_embodiment("franka")
        self._embodiment, self._layout, self._names = embodiment, layout_of(embodiment.name), arm_names(embodiment)
        self._joints = embodiment.control.mode == "joint_position"
        if embodiment.control.mode == "joint_velocity":
            raise ConfigError(
                f"the scripted policy drives TCP poses or joint positions; embodiment {embodiment.name} takes joint velocities"
            )
        self.spec = PolicySpec("script", embodiment.name, embodiment.cameras, (), self._channels(), rows, DT_S)
        self._address = address
        self._reader: MirrorReader | None = None
        self._model: mujoco.MjModel | None = None
        self._sequence = 0

    def reset(self) -> None:
        """Starts counting chunks anew."""
        self._sequence = 0

    def infer(self, observation: Observation) -> Inference:
        """Returns the expert's chunk, stamped with the instant of the truth that it used, a little newer than the observation.

        Raises:
            PolicyError: the instruction is not canonical, or not for this table. DeviceError: no simulation runs.
        """
        began_s = time.perf_counter()
        try:
            task = parse_task(observation.instruction)
        except ConfigError as error:
            raise PolicyError(f"the scripted policy reads canonical instructions only: {error}") from None
        stamp_ns = self._look()
        planned = self._plan(task)
        chunk = ActionChunk(
            stamp_ns, DT_S, self.spec.channels, planned.rows, self._sequence, "script", self.spec.embodiment,
            time.perf_counter() - began_s, {"stage": float(planned.stage)},
        )  # fmt: skip
        self._sequence += 1
        skill = task.chain[planned.skill]
        return Inference(chunk, SkillPlan(stamp_ns, task.chain, planned.skill, skill.split()[0], skill))

    def _channels(self) -> tuple[str, ...]:
        channels: list[str] = []
        for arm, robot in self._embodiment.robots.items():
            bare = [*(f"{joint}.position" for joint in robot.joints), CHANNELS[-1]] if self._joints else CHANNELS
            channels += [join(self._embodiment.prefix(arm), channel) for channel in bare]
        return tuple(channels)

    def _look(self) -> int:
        """Copies the simulator's state and returns its stamp; takes its scene too, the first time and after its restart."""
        self._reader = self._reader or MirrorReader(find_mirror(self._address))
        snapshot = self._reader.read()
        if self._reader.model is not self._model:
            self._model = self._reader.model
            self._data = mujoco.MjData(self._model)
            self._scene = SceneState(self._model, self._names)
            limits = {
                arm: (np.array(robot.position_min_rad), np.array(robot.position_max_rad)) for arm, robot in self._embodiment.robots.items()
            }
            self._ik = {arm: SceneIk(self._model, names, *limits[arm]) for arm, names in self._names.items()}
        self._data.qpos[:] = snapshot.qpos
        mujoco.mj_kinematics(self._model, self._data)
        return snapshot.stamp_ns

    def _plan(self, task: Task) -> Plan:
        world = self._scene.world(self._data)
        missing = [goal.block for goal in task.goals if goal.block not in world.position]
        if missing:
            raise PolicyError(f"'{task.text}': there is no {missing[0]} on the table of embodiment {self._embodiment.name}")
        planned = plan(world, task, self.spec.horizon, self._layout)
        return replace(planned, rows=self._as_joints(planned.rows)) if self._joints else planned

    def _as_joints(self, rows: np.ndarray) -> np.ndarray:
        """Replaces the pose [6] of each arm by its joint positions [N]."""
        parts = []
        for number, (arm, ik) in enumerate(self._ik.items()):
            own = rows[:, 7 * number : 7 * number + 7]
            position, solved = self._data.qpos[self._scene.arm[arm]].copy(), []
            for row in own:
                position = ik.solve(position, row[:6])
                solved.append(np.append(position, row[6]))
            parts.append(np.array(solved))
        return np.concatenate(parts, axis=1)
