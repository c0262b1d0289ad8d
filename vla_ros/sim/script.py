"""The expert behind the policy protocol: it reads the truth from the simulator instead of looking. For tests of everything else."""

from __future__ import annotations

import time

import mujoco

from vla_ros.core.embodiment import Embodiment, load_embodiment
from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec
from vla_ros.sim.expert import CHANNELS, DT_S, plan_chunk
from vla_ros.sim.mirror import MirrorReader, find_mirror
from vla_ros.sim.render import compile_scene
from vla_ros.sim.scene import CAMERAS, build_simulator
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import parse_task


class ScriptPolicy:
    """Implements `core.interfaces.Policy` for the simulated table.

    Args:
        embodiment: must be "franka".
        address: of the simulation, as in the rig; None: the one in this ROS domain.
        rows: of a chunk, 0.1 s each.
    """

    def __init__(self, embodiment: Embodiment | None = None, address: str | None = None, rows: int = 16) -> None:
        embodiment = embodiment or load_embodiment("franka")
        if embodiment.name != "franka":
            raise ConfigError(f"the scripted policy knows embodiment franka, not '{embodiment.name}'")
        self.spec = PolicySpec("script", embodiment.name, tuple(CAMERAS), (), CHANNELS, rows, DT_S)
        self._address = address
        self._reader: MirrorReader | None = None
        self._model = compile_scene(build_simulator(embodiment.robots["arm"].home_rad).scene)
        self._data = mujoco.MjData(self._model)
        self._scene = SceneState(self._model)
        self._sequence = 0

    def reset(self) -> None:
        """Starts counting chunks anew."""
        self._sequence = 0

    def infer(self, observation: Observation) -> Inference:
        """Returns the expert's chunk, stamped as the observation although the truth it uses is a little newer.

        Raises:
            PolicyError: the instruction is not canonical. DeviceError: no simulation runs.
        """
        began_s = time.perf_counter()
        try:
            task = parse_task(observation.instruction)
        except ConfigError as error:
            raise PolicyError(f"the scripted policy reads canonical instructions only: {error}") from None
        self._reader = self._reader or MirrorReader(find_mirror(self._address))
        snapshot = self._reader.read()
        self._data.qpos[:] = snapshot.qpos
        mujoco.mj_kinematics(self._model, self._data)
        rows, stage = plan_chunk(self._scene.world(self._data), task, self.spec.horizon)
        chunk = ActionChunk(
            observation.stamp_ns, DT_S, CHANNELS, rows, self._sequence, "script", self.spec.embodiment,
            time.perf_counter() - began_s, {"stage": float(stage)},
        )  # fmt: skip
        self._sequence += 1
        return Inference(chunk)
