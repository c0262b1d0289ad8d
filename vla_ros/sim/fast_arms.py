"""What moves the arms of the fast simulation: MuJoCo's own servos that follow joint velocities, so that many physics steps are one call."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import mujoco
import numpy as np

from vla_ros.core.embodiment import Embodiment, RobotDescription
from vla_ros.core.rotations import conjugate, interpolate, multiply, quat_to_rotvec, rotvec_to_quat
from vla_ros.sim.arms import arm_scene
from vla_ros.sim.layout import ArmNames, Reach, arm_names
from vla_ros.sim.scene import ROBOT, build_simulator
from vla_ros.sim.world import Hand

TIMESTEP_S = 0.002
CONTROL_S = 0.02  # the arm's own control, as at the rig: 50 Hz commands
_KV = (135.0, 135.0, 105.0, 105.0, 60.0, 60.0, 60.0)
_STRIDE_M = 0.05 * CONTROL_S  # of one finger in a control
_LEAD_RAD = 0.15  # how far a servo's goal runs ahead of a joint that something stops


def driven_scene(embodiment: Embodiment, drawer: bool = False) -> ET.Element:
    """Returns the MJCF of the table whose arms take joint velocities (rad/s) and whose fingers take positions (m).

    With `drawer` it is the table with the drawer, which only the Franka has.

    Raises:
        ConfigError: the embodiment has no table.
    """
    names = arm_names(embodiment)
    if embodiment.name == "franka":
        return _franka_scene(embodiment, names["arm"], drawer)
    scene = arm_scene(embodiment)
    if len(embodiment.robots) > 1:
        # Without these a bar that is held at one end turns slowly between the fingers, and a shaken hand loses it.
        scene.find("option").attrib.update(cone="elliptic", impratio="10")
    actuators = scene.find("actuator")
    for arm, robot in embodiment.robots.items():
        for joint, low, high in zip(names[arm].joints, robot.position_min_rad, robot.position_max_rad, strict=True):
            # The same servo, whose goal moves evenly between two controls instead of in stairs.
            servo = actuators.find(f"position[@name='{joint}']")
            servo.tag = "intvelocity"
            servo.set("actrange", f"{low} {high}")
        force_n = robot.gripper.force_n
        for joint in names[arm].fingers:
            actuators.find(f"position[@name='{joint}']").set("forcerange", f"{-force_n} {force_n}")
    return scene


def _franka_scene(embodiment: Embodiment, names: ArmNames, drawer: bool) -> ET.Element:
    """Replaces franky-sim's torque control by velocity servos of the same gain."""
    scene = build_simulator(embodiment.robots["arm"].home_rad, drawer).scene
    scene.find("option").set("timestep", str(TIMESTEP_S))
    for body in scene.find(f"worldbody/body[@name='{ROBOT}base']").iter("body"):
        body.set("gravcomp", "1")
    actuators = scene.find("actuator")
    for actuator in list(actuators):
        actuators.remove(actuator)
    for joint, gain in zip(names.joints, _KV, strict=True):
        ET.SubElement(actuators, "velocity", name=joint, joint=joint, kv=str(gain))
    for joint in names.fingers:
        ET.SubElement(actuators, "position", name=joint, joint=joint, kp="1000", kv="50", forcerange="-30 30")
    return scene


class FastArm:
    """One arm of a `driven_scene`: runs evenly to each target, never faster than its joints may.

    Args:
        robot: its description. names: of its parts. reach: how its gripper works.
        pose: whether targets are TCP poses [6] (m, rotation vector rad), else joint positions [N] rad.
    """

    def __init__(
        self, robot: RobotDescription, names: ArmNames, reach: Reach, pose: bool, model: mujoco.MjModel, data: mujoco.MjData
    ) -> None:
        self._pose, self._model, self._data = pose, model, data
        self.home = np.array(robot.home_rad)
        self.low, self.high = np.array(robot.position_min_rad), np.array(robot.position_max_rad)
        self.speed = np.array(robot.velocity_max_rad_s)
        self.open_m = reach.width_max_m
        self.qpos = np.array([model.joint(name).qposadr[0] for name in names.joints])
        self._dof = np.array([model.joint(name).dofadr[0] for name in names.joints])
        self.servos = np.array([model.actuator(name).id for name in names.joints])
        self._goals = model.actuator_actadr[self.servos]  # -1: a velocity servo has none
        self._fingers = np.array([model.joint(name).qposadr[0] for name in names.fingers])
        self._finger_servos = np.array([model.actuator(name).id for name in names.fingers])
        self._site = int(model.site(names.site).id)
        self._jacobian = np.zeros((6, model.nv))

    def rest(self, hand: Hand) -> None:
        """Starts from where the arm is."""
        self._reference = np.append(hand.position, quat_to_rotvec(hand.quat_xyzw))
        self._finger_m = hand.width_m / 2
        if self._goals[0] >= 0:
            self._data.act[self._goals] = self._data.qpos[self.qpos]

    def aim(self, target: np.ndarray, closed: float) -> None:
        """Sets where to be at the end of this step: a pose or joints, then whether the gripper is closed (> 0.5)."""
        self._start, self._target = self._reference, target
        self._finger_goal_m = 0.0 if closed > 0.5 else self.open_m / 2

    def control(self, number: int, controls: int) -> None:
        """Commands the servos for the control `number` of 1 .. `controls`, all of which together are the step."""
        if self._goals[0] >= 0:
            # A joint that is stopped does not store up the way it was to go.
            now = self._data.qpos[self.qpos]
            self._data.act[self._goals] = np.clip(self._data.act[self._goals], now - _LEAD_RAD, now + _LEAD_RAD)
        velocity = self._towards_pose(number / controls) if self._pose else self._towards_joints((controls - number + 1) * CONTROL_S)
        self._data.ctrl[self.servos] = np.clip(velocity, -self.speed, self.speed)
        self._squeeze()

    def _towards_joints(self, left_s: float) -> np.ndarray:
        return (self._target - self._data.act[self._goals]) / left_s

    def _towards_pose(self, share: float) -> np.ndarray:
        """Joint velocities from the TCP's: feed-forward plus the error's share, and a pull of the elbow towards home."""
        data, before, start, goal = self._data, self._reference, self._start, self._target
        turn = interpolate(start[3:], goal[3:], share)
        reference = self._reference = np.append(start[:3] + (goal[:3] - start[:3]) * share, turn)
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, self._dof]
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.site_xmat[self._site])
        target = rotvec_to_quat(reference[3:])
        error = np.append(reference[:3] - data.site_xpos[self._site], quat_to_rotvec(multiply(target, conjugate(quat[[1, 2, 3, 0]]))))
        ahead = np.append(reference[:3] - before[:3], quat_to_rotvec(multiply(target, conjugate(rotvec_to_quat(before[3:])))))
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-4 * np.eye(6))
        velocity = inverse @ (ahead / CONTROL_S + 6.0 * error)
        pull = 0.8 * (self.home - data.qpos[self.qpos])
        return velocity + (pull - inverse @ (jacobian @ pull))

    def _squeeze(self) -> None:
        # The goal runs ahead of the fingers no farther than the force limit needs, so that opening starts at once.
        now = float(self._data.qpos[self._fingers].sum()) / 2
        self._finger_m = float(np.clip(self._finger_m, now - 0.03, now + 0.004))
        self._finger_m += float(np.clip(self._finger_goal_m - self._finger_m, -_STRIDE_M, _STRIDE_M))
        self._data.ctrl[self._finger_servos] = self._finger_m
