"""The table as fast as it goes, for demonstrations and gates: same scene and pictures as the rig, no robot protocol, no clock."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.rotations import conjugate, interpolate, multiply, nearest_rotvec, quat_to_rotvec, rotvec_to_quat
from vla_ros.sim.expert import DT_S, plan_chunk
from vla_ros.sim.judge import Judge, Outcome
from vla_ros.sim.layout import ArmNames, arm_names, layout_of
from vla_ros.sim.placement import draw_placement
from vla_ros.sim.render import Renderer, compile_scene
from vla_ros.sim.scene import ROBOT, build_simulator
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import OBJECTS, parse_task, tasks
from vla_ros.sim.world import World

TIMESTEP_S = 0.002
CONTROL_S = 0.02  # the arm's own control, as at the rig: 50 Hz velocity commands
OVERSAMPLING = 2  # pictures are drawn this much larger than a policy sees them
_FINGER_M_S = 0.05
_KV = (135.0, 135.0, 105.0, 105.0, 60.0, 60.0, 60.0)


@dataclass(frozen=True)
class FastView:
    """One instant.

    `images` uint8 [H, W, 3] by camera (empty when not rendered), TCP `pose` [6] (m, rotation vector rad) and `objects` [5, 3] m
    in `base_link`, the latter in the order of `tasks.OBJECTS`; `joints_rad` [7]; `world` is the truth that the expert needs.
    """

    images: dict[str, np.ndarray]
    pose: np.ndarray
    gripper_width_m: float
    objects: np.ndarray
    joints_rad: np.ndarray
    world: World


class FastLoop:
    """One scene, compiled once, stepped at the policy's 10 Hz.

    Args:
        cameras: of "front", "wrist".
        width, height: what a policy sees (px); pictures come `OVERSAMPLING` times larger, to be averaged down like the rig's.
    """

    def __init__(self, cameras: Sequence[str] = ("front", "wrist"), width: int = 128, height: int = 96) -> None:
        there = layout_of("franka").cameras
        unknown = [name for name in cameras if name not in there]
        if unknown:
            raise ConfigError(f"camera '{unknown[0]}' is not in the scene; {did_you_mean(unknown[0], there)}")
        self._cameras = tuple(cameras)
        franka = load_embodiment("franka")
        arm, names = franka.robots["arm"], arm_names(franka)
        self._home = np.array(arm.home_rad)
        self._speed = np.array(arm.velocity_max_rad_s)
        self._model = compile_scene(_servo_driven(build_simulator(arm.home_rad).scene, names["arm"]))
        self._data = mujoco.MjData(self._model)
        self._scene = SceneState(self._model, names)
        self._arm, self._arm_dof = self._scene.arm["arm"], self._scene.arm_dof["arm"]
        self._site = self._model.site("tcp").id
        self._jacobian = np.zeros((6, self._model.nv))
        self._size = (width * OVERSAMPLING, height * OVERSAMPLING)
        self._renderer: Renderer | None = None

    def instructions(self, stack: bool = False) -> list[str]:
        """The canonical tasks of one kind."""
        return [task.text for task in tasks(stack)]

    def reset(self, seed: int, instruction: str, disturb_start: bool = False) -> None:
        """Places everything by `seed`; with `disturb_start` the arm starts a little off its home."""
        self._task = parse_task(instruction)
        rng = np.random.default_rng((seed, 1))
        start = self._home + (rng.normal(size=7) * 0.08 if disturb_start else 0.0)
        width = float(rng.choice((0.0, 0.04, 0.08))) if disturb_start and rng.random() < 0.15 else 0.08
        mujoco.mj_resetData(self._model, self._data)
        self._scene.write(self._data, draw_placement(seed), {"arm": start}, {"arm": width})
        mujoco.mj_forward(self._model, self._data)
        self._finger_m = width / 2
        world = self._scene.world(self._data)
        self._reference = np.append(world.tcp_position, quat_to_rotvec(world.tcp_quat_xyzw))
        self._judge = Judge(self._task, world)

    def look(self, render: bool = True) -> FastView:
        """Measures, and renders every camera if asked to."""
        images = {}
        if render:
            if self._renderer is None:
                self._renderer = Renderer(self._model, *self._size)
            images = {name: self._renderer.render(self._data, name) for name in self._cameras}
        world = self._scene.world(self._data)
        pose = np.append(world.tcp_position, nearest_rotvec(quat_to_rotvec(world.tcp_quat_xyzw), np.array([np.pi, 0, 0])))
        objects = np.stack([world.position[name] for name in OBJECTS])
        return FastView(images, pose, world.gripper_width_m, objects, self._data.qpos[self._arm].copy(), world)

    def expert(self, view: FastView, horizon: int) -> tuple[np.ndarray, int]:
        """What a perfect expert would command from here: see `expert.plan_chunk`."""
        return plan_chunk(view.world, self._task, horizon)

    def step(self, pose: np.ndarray, closed: float) -> None:
        """Drives one policy step of 0.1 s: the reference runs evenly to `pose` [6] (m, rad) and the arm tracks it."""
        pose = np.asarray(pose, dtype=np.float64)
        start, controls = self._reference, round(DT_S / CONTROL_S)
        for control in range(1, controls + 1):
            share = control / controls
            before = self._reference
            turn = interpolate(start[3:], pose[3:], share)
            self._reference = np.append(start[:3] + (pose[:3] - start[:3]) * share, turn)
            self._drive(before)
            self._squeeze(closed > 0.5)
            mujoco.mj_step(self._model, self._data, round(CONTROL_S / TIMESTEP_S))
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            self._judge.update(self._scene.world(self._data), self._data.time)
        mujoco.mj_camlight(self._model, self._data)

    def outcome(self) -> Outcome:
        """How the task stands."""
        return self._judge.outcome

    def shift(self, name: str, dx_m: float, dy_m: float) -> None:
        """Moves an object, as somebody at the table might."""
        self._scene.shift(self._data, name, dx_m, dy_m)
        self._judge.excuse(name, dx_m, dy_m)
        mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _drive(self, before: np.ndarray) -> None:
        """Joint velocities from the TCP's: feed-forward plus the error's share, and a pull of the elbow towards home."""
        data, reference = self._data, self._reference
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, self._arm_dof]
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.site_xmat[self._site])
        target = rotvec_to_quat(reference[3:])
        error = np.append(reference[:3] - data.site_xpos[self._site], quat_to_rotvec(multiply(target, conjugate(quat[[1, 2, 3, 0]]))))
        ahead = np.append(reference[:3] - before[:3], quat_to_rotvec(multiply(target, conjugate(rotvec_to_quat(before[3:])))))
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-4 * np.eye(6))
        velocity = inverse @ (ahead / CONTROL_S + 6.0 * error)
        pull = 0.8 * (self._home - data.qpos[self._arm])
        velocity += pull - inverse @ (jacobian @ pull)
        data.ctrl[:7] = np.clip(velocity, -self._speed, self._speed)

    def _squeeze(self, closed: bool) -> None:
        goal = 0.0 if closed else 0.04
        stride = _FINGER_M_S * CONTROL_S
        # The goal runs ahead of the fingers no farther than the force limit needs, so that opening starts at once.
        now = self._scene.gripper_width_m(self._data, "arm") / 2
        self._finger_m = float(np.clip(self._finger_m, now - 0.03, now + 0.004))
        self._finger_m += float(np.clip(goal - self._finger_m, -stride, stride))
        self._data.ctrl[7:9] = self._finger_m


def _servo_driven(scene: ET.Element, names: ArmNames) -> ET.Element:
    """Replaces franky-sim's torque control by MuJoCo's own velocity servos of the same gain, so that many steps are one call."""
    option = scene.find("option")
    option.set("timestep", str(TIMESTEP_S))
    for body in scene.find(f"worldbody/body[@name='{ROBOT}base']").iter("body"):
        body.set("gravcomp", "1")
    actuators = scene.find("actuator")
    for actuator in list(actuators):
        actuators.remove(actuator)
    for joint, gain in zip(names.joints, _KV, strict=True):
        ET.SubElement(actuators, "velocity", joint=joint, kv=str(gain))
    for joint in names.fingers:
        ET.SubElement(actuators, "position", joint=joint, kp="1000", kv="50", forcerange="-30 30")
    return scene
