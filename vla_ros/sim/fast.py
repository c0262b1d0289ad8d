"""Every table as fast as it goes, for demonstrations and gates: same scene and pictures as the rig, no robot protocol, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from vla_ros.core.embodiment import Embodiment, load_embodiment
from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.rotations import nearest_rotvec, quat_to_rotvec
from vla_ros.sim.drawer import TRAVEL_M
from vla_ros.sim.expert import DT_S
from vla_ros.sim.fast_arms import CONTROL_S, TIMESTEP_S, FastArm, driven_scene
from vla_ros.sim.ik import SceneIk
from vla_ros.sim.judge import Judge, Outcome
from vla_ros.sim.layout import Layout, arm_names, down_rotvec, layout_of
from vla_ros.sim.placement import check_task, draw_placement
from vla_ros.sim.planner import Plan, plan
from vla_ros.sim.render import Renderer, compile_scene
from vla_ros.sim.state import SceneState
from vla_ros.sim.tasks import BAR, BLOCKS, DRAWER, OBJECTS, TRAY, parse_task, tasks
from vla_ros.sim.world import World

OVERSAMPLING = 2  # pictures are drawn this much larger than a policy sees them
THINGS = (*OBJECTS, BAR, TRAY, DRAWER)
_DISTURBANCE_RAD = 0.08
_AJAR_SHARE = 0.3


@dataclass(frozen=True)
class FastView:
    """One instant.

    `images` uint8 [H, W, 3] by camera (empty when not rendered); `state` [S], for each arm its TCP pose (m, rotation vector rad) or its
    joints (rad), then its gripper's opening (m); `objects` [8, 3] m in `base_link` in the order of `THINGS`, NaN for what is not there;
    `joints_rad` arm -> [N]; `world` is the truth that the expert needs.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    objects: np.ndarray
    joints_rad: dict[str, np.ndarray]
    world: World


class _Bench:
    """One compiled scene with its arms, ready to be played."""

    def __init__(self, robot: Embodiment, layout: Layout, drawer: bool) -> None:
        names, pose = arm_names(robot), robot.control.mode == "tcp_pose"
        self.model = compile_scene(driven_scene(robot, drawer))
        self.data = mujoco.MjData(self.model)
        self.scene = SceneState(self.model, names)
        self.arms = {
            arm: FastArm(description, names[arm], layout.arms[arm], pose, self.model, self.data)
            for arm, description in robot.robots.items()
        }
        self.ik = {} if pose else {name: SceneIk(self.model, names[name], arm.low, arm.high) for name, arm in self.arms.items()}
        self.renderer: Renderer | None = None


class FastLoop:
    """One table, its scenes compiled once, stepped at the policy's 10 Hz. Tasks with a drawer have a scene of their own.

    Actions are [D]: for each arm its TCP pose or its joints, as the embodiment is controlled, then whether its gripper is closed (0 | 1).

    Args:
        embodiment: name of one with a table.
        cameras: of this table.
        width, height: what a policy sees (px); pictures come `OVERSAMPLING` times larger, to be averaged down like the rig's.

    Raises:
        ConfigError: no such table or camera, or the embodiment is driven by joint velocities.
    """

    def __init__(self, embodiment: str, cameras: Sequence[str], width: int = 128, height: int = 96) -> None:
        self._layout = layout_of(embodiment)
        there = self._layout.cameras
        unknown = [name for name in cameras if name not in there]
        if unknown:
            raise ConfigError(f"camera '{unknown[0]}' is not in the scene; {did_you_mean(unknown[0], there)}")
        self._cameras, self._size = tuple(cameras), (width * OVERSAMPLING, height * OVERSAMPLING)
        robot = self._robot = load_embodiment(embodiment)
        if robot.control.mode == "joint_velocity":
            raise ConfigError(f"{embodiment}: control.mode joint_velocity; the fast simulation drives tcp_pose or joint_position")
        self._pose = robot.control.mode == "tcp_pose"
        self._benches: dict[bool, _Bench] = {}
        self._down = {arm: np.array(down_rotvec(reach.heading_rad)) for arm, reach in self._layout.arms.items()}
        self._use(drawer=False)

    def _use(self, drawer: bool) -> None:
        """Makes the scene with or without the drawer the one that is played."""
        if drawer not in self._benches:
            self._benches[drawer] = _Bench(self._robot, self._layout, drawer)
        bench = self._bench = self._benches[drawer]
        self._model, self._data, self._scene, self._arms, self._ik = bench.model, bench.data, bench.scene, bench.arms, bench.ik

    def instructions(self, kind: str) -> list[str]:
        """The canonical tasks of a kind (`tasks.KINDS`); none where the table has no such task."""
        texts = [task.text for task in tasks(kind)]
        return texts if kind in self._layout.kinds else []

    def reset(self, seed: int, instruction: str, disturb_start: bool = False) -> None:
        """Places everything by `seed`; with `disturb_start` each arm starts a little off its home, seldom with its hand half closed or
        the drawer ajar.

        Raises:
            ConfigError: not a canonical instruction, or one that this table has no arms or no drawer for.
        """
        task = parse_task(instruction)
        check_task(task, self._layout, self._robot.name)
        self._task = task
        self._use(task.drawer)
        rng = np.random.default_rng((seed, 1))
        starts, widths = {}, {}
        for name, arm in self._arms.items():
            starts[name], widths[name] = arm.home, arm.open_m
            if disturb_start:
                starts[name] = np.clip(arm.home + rng.normal(size=len(arm.home)) * _DISTURBANCE_RAD, arm.low, arm.high)
                if rng.random() < 0.15:
                    widths[name] = float(rng.choice((0.0, arm.open_m / 2, arm.open_m)))
        placement = draw_placement(seed, self._layout, task)
        if task.drawer and disturb_start and rng.random() < _AJAR_SHARE:
            placement = replace(placement, opening_m=float(rng.uniform(0.0, TRAVEL_M)))
        mujoco.mj_resetData(self._model, self._data)
        self._scene.write(self._data, placement, starts, widths)
        mujoco.mj_forward(self._model, self._data)
        world = self._scene.world(self._data)
        for arm, hand in zip(self._arms.values(), world.hands, strict=True):
            arm.rest(hand)
        self._judge = Judge(self._task, world)

    def look(self, render: bool = True) -> FastView:
        """Measures, and renders every camera if asked to."""
        images = {}
        if render:
            if self._bench.renderer is None:
                self._bench.renderer = Renderer(self._model, *self._size)
            images = {name: self._bench.renderer.render(self._data, name) for name in self._cameras}
        world = self._scene.world(self._data)
        joints = {name: self._data.qpos[arm.qpos] for name, arm in self._arms.items()}
        state = []
        for (name, position), hand in zip(joints.items(), world.hands, strict=True):
            turn = nearest_rotvec(quat_to_rotvec(hand.quat_xyzw), self._down[name])
            state += [hand.position, turn] if self._pose else [position]
            state.append((hand.width_m,))
        there = self._there()
        objects = np.stack([world.position[name] if name in there else np.full(3, np.nan) for name in THINGS])
        return FastView(images, np.concatenate(state), objects, joints, world)

    def _there(self) -> tuple[str, ...]:
        """What lies within reach in this episode; the rest waits aside, where no camera sees it."""
        if self._task.drawer:
            return (*BLOCKS, DRAWER)
        return (self._task.goals[0].block,) if self._task.kind in ("pass", "lift") else OBJECTS

    def expert(self, view: FastView, horizon: int) -> tuple[np.ndarray, int]:
        """What a perfect expert would command from here: [horizon, D] and the stage, see `planner.Plan`."""
        planned = self._plan(view, horizon)
        if self._pose:
            return planned.rows, planned.stage
        parts = []
        for number, (name, arm) in enumerate(self._arms.items()):
            own = planned.rows[:, 7 * number : 7 * number + 7]
            parts += [self._joints(name, arm, view.joints_rad[name], own[:, :6]), own[:, 6:]]
        return np.concatenate(parts, axis=1), planned.stage

    def chain(self) -> tuple[str, ...]:
        """The atomic skills of the task in order, each with what it is about; its first word is the skill."""
        return self._task.chain

    def skill(self, view: FastView) -> int:
        """The skill that the expert is at, as an index into `chain`; it goes back when something was lost."""
        return self._plan(view, 1).skill

    def _plan(self, view: FastView, horizon: int) -> Plan:
        return plan(view.world, self._task, horizon, self._layout)

    def _joints(self, name: str, arm: FastArm, start_rad: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Joints [T, N] for poses [T, 6], each from the one before and no farther from it than the arm gets in a step."""
        rows, position, stride = np.empty((len(poses), len(arm.home))), start_rad, arm.speed * DT_S
        for row, pose in enumerate(poses):
            wanted = self._ik[name].solve(position, pose)
            rows[row] = position = position + np.clip(wanted - position, -stride, stride)
        return rows

    def step(self, action: np.ndarray) -> None:
        """Drives one policy step of 0.1 s: every arm runs evenly to its part of `action` [D]."""
        action, start = np.asarray(action, dtype=np.float64), 0
        for arm in self._arms.values():
            gripper = start + (6 if self._pose else len(arm.home))
            arm.aim(action[start:gripper], float(action[gripper]))
            start = gripper + 1
        controls = round(DT_S / CONTROL_S)
        for control in range(1, controls + 1):
            for arm in self._arms.values():
                arm.control(control, controls)
            mujoco.mj_step(self._model, self._data, round(CONTROL_S / TIMESTEP_S))
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            self._judge.update(self._scene.world(self._data), self._data.time)
        mujoco.mj_camlight(self._model, self._data)

    def outcome(self) -> Outcome:
        """How the task stands."""
        return self._judge.outcome

    def roles(self, skill: int = 0) -> np.ndarray:
        """int [2], indices into `THINGS`: what a skill of the chain moves and where to; twice the same where the goal is no thing."""
        goal = self._task.goal_of(skill)
        moved = THINGS.index(goal.block)
        return np.array([moved, THINGS.index(goal.goal) if goal.goal in THINGS else moved])

    def shift(self, name: str, dx_m: float, dy_m: float) -> None:
        """Moves an object, as somebody at the table might."""
        self._scene.shift(self._data, name, dx_m, dy_m)
        self._judge.excuse(name, dx_m, dy_m)
        mujoco.mj_forward(self._model, self._data)

    def close(self) -> None:
        """Frees the renderer."""
        for bench in self._benches.values():
            if bench.renderer is not None:
                bench.renderer.close()
                bench.renderer = None
