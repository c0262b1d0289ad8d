"""Any arm that a ros2_control stack already drives (franka_ros2, ros2_kortex, ur_robot_driver): joint states in, trajectories out.

The driver stack keeps its own safety and its controller; this class streams it one-point trajectories, and the controller holds the last
point when they stop coming. It has a ROS node and a thread of its own, so that a robot node may block in `connect` and `recover`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.errors import ConfigError, DeviceError, StaleData, VlaError, did_you_mean
from vla_ros.core.types import Action, RobotState
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.ros2_control_gripper import GripperCommander, gripper_commander
from vla_ros.nodes.spinning import Spinning
from vla_ros.robots.kinematics import Kinematics
from vla_ros.robots.tracking import PositionReference

_TURN = 2 * math.pi
_HOLD_S = 0.1  # in which the controller brakes to the position that it is to hold
_FOLLOWS = 0.95  # of the allowed lead: from here on the arm does not follow


class Ros2ControlArm:
    """Implements `core.interfaces.Robot` over the topics of a running ros2_control stack.

    Args:
        robot: limits, joints, URDF.
        joint_states: topic with all joints of the arm, in any order, among others.
        trajectory: topic of its joint_trajectory_controller.
        joints: the stack's names in the order of the embodiment's joints; empty: the embodiment's own.
        continuous_joints: names of the embodiment whose position the stack wraps to +-pi; they are counted on from home.
        gripper: what moves the hand, see `ros2_control_gripper.gripper_commander`; None: it stays as it is.
        gain_hz: share of the remaining distance that is travelled per second.
        lead_rad: how far the reference may run ahead of the measured position.
        time_from_start_s: in which the controller goes to each point; 1 to 3 command periods.
        stale_after_s: no new joint states for so long means that the link is dead.
        follow_timeout_s: the arm lags by the whole lead for so long: the controller is not active, or something blocks the arm.
    """

    def __init__(
        self,
        robot: RobotDescription,
        *,
        joint_states: str = "/joint_states",
        trajectory: str = "/joint_trajectory_controller/joint_trajectory",
        joints: Sequence[str] = (),
        continuous_joints: Sequence[str] = (),
        gripper: dict[str, object] | None = None,
        gain_hz: float = 6.0,
        lead_rad: float = 0.2,
        time_from_start_s: float = 0.05,
        stale_after_s: float = 0.2,
        connect_timeout_s: float = 3.0,
        follow_timeout_s: float = 0.5,
    ) -> None:
        self.robot = robot
        self._names = tuple(joints) or robot.joints
        if len(self._names) != len(robot.joints):
            raise ConfigError(f"joints: {len(self._names)} names, expected {len(robot.joints)} (for {', '.join(robot.joints)})")
        for name in continuous_joints:
            if name not in robot.joints:
                raise ConfigError(f"continuous_joints: no joint '{name}'; {did_you_mean(name, robot.joints)}")
        self._wraps = np.array([name in continuous_joints for name in robot.joints])
        self._topics, self._gripper_options = (joint_states, trajectory), gripper
        self._lead_rad, self._ahead_s = lead_rad, time_from_start_s
        self._stale_after_s, self._timeout_s, self._follow_timeout_s = stale_after_s, connect_timeout_s, follow_timeout_s
        self._low, self._high = np.array(robot.position_min_rad), np.array(robot.position_max_rad)
        self._reference = PositionReference(robot, Kinematics(robot), gain_hz, lead_rad)
        self._lock = threading.RLock()
        self._node: rclpy.node.Node | None = None
        self._gripper: GripperCommander | None = None
        self._forget()

    def connect(self) -> None:
        """Subscribes and waits for the joints and the controller. Raises DeviceError with the topic and the fix."""
        if self._node is not None:
            return
        self._forget()
        self._node = rclpy.create_node(f"ros2_control_{self.robot.name}", use_global_arguments=False, enable_rosout=False)
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        self._spinning = Spinning(executor, "ros2_control")
        try:
            self._publisher = self._node.create_publisher(JointTrajectory, self._topics[1], qos.COMMAND)
            if self.robot.gripper is not None and self._gripper_options is not None:
                self._gripper = gripper_commander(self._node, self.robot.gripper, **self._gripper_options)
            # best effort hears every publisher
            self._node.create_subscription(JointState, self._topics[0], self._on_joint_states, qos_profile_sensor_data)
            self._wait_until_ready()
        except VlaError:
            self.close()
            raise

    def read(self) -> RobotState:
        """Returns the newest measurement. Raises StaleData ("link_lost"), DeviceError when not connected."""
        if self._node is not None:
            self._spinning.check()
        return self._fresh()

    def command(self, action: Action) -> Action:
        """Heads for absolute targets and returns them, or what the speed and joint limits left of them. Does not block.

        Raises:
            DataError: not the channels of this arm. StaleData: no joint states.
            DeviceError: "controller" (nobody listens) or "not_following", until `recover`.
        """
        with self._lock:
            measured = self._fresh()
            self._check_controller()
            position, executed = self._reference.follow(action, measured.position, action.stamp_ns or time.time_ns())
            self._check_following(position, measured.position)
            ahead = position + self._reference.velocity * self._ahead_s
            self._publish(np.clip(ahead, self._low, self._high), self._ahead_s)
            self._holding = False
        if self._gripper is not None:
            self._gripper.command(action)
        return executed

    def stop(self) -> None:
        """Lets the controller brake to the measured position and hold it; on a dead link it does so by itself. Repeating it is free."""
        with self._lock:
            self._reference.reset()
            self._lagging_s = None
            if self._node is None or self._measured is None or self._holding:
                return
            self._holding = True
            self._publish(np.clip(self._measured.position, self._low, self._high), _HOLD_S)

    def recover(self) -> None:
        """Waits for joint states and controller, forgets a fault, holds. Raises DeviceError when they do not come."""
        self.connect()
        with self._lock:
            self._fault, self._holding = "", False
        self._wait_until_ready()
        self.stop()

    def close(self) -> None:
        """Holds, then ends the node. Idempotent."""
        self.stop()
        with self._lock:
            node, self._node = self._node, None
        if node is not None:
            self._spinning.close()
            node.destroy_node()

    def _forget(self) -> None:
        self._measured: RobotState | None = None
        self._unwrapped = np.array(self.robot.home_rad, dtype=np.float64)
        self._shift = np.zeros_like(self._unwrapped)  # whole turns between the stack's wrapped positions and ours
        self._arrived_s = time.monotonic()
        self._unusable = ""
        self._fault, self._lagging_s, self._holding = "", None, True

    def _on_joint_states(self, message: JointState) -> None:
        """Keeps a complete, finite, newer measurement; a stack may spread its joints over several messages, others are not for us."""
        index = {name: i for i, name in enumerate(message.name)}
        missing = [name for name in self._names if name not in index]
        if missing:
            self._unusable = f"{self._topics[0]} lacks {', '.join(missing)}; it has {', '.join(message.name)}"
            return
        stamp_ns = msgs.stamp_ns(message.header.stamp) or time.time_ns()
        if self._measured is not None and stamp_ns <= self._measured.stamp_ns:
            self._unusable = "its stamp does not advance"
            return
        order = [index[name] for name in self._names]
        position, velocity, effort = (_column(values, order) for values in (message.position, message.velocity, message.effort))
        if not np.isfinite(position).all() or not np.isfinite(velocity).all():
            self._unusable = f"not finite: {np.round(position, 3)}"
            return
        self._shift = np.where(self._wraps, _TURN * np.round((self._unwrapped - position) / _TURN), 0.0)
        self._unwrapped = position + self._shift
        hand = self._gripper
        width_m = hand.width_m(message.position[index[hand.joint]]) if hand and hand.joint in index else None
        self._measured = RobotState(stamp_ns, self.robot.joints, self._unwrapped, velocity, effort, width_m)
        self._arrived_s, self._unusable = time.monotonic(), ""

    def _fresh(self) -> RobotState:
        if self._node is None:
            raise DeviceError(f"{self.robot.name} on {self._topics[0]}: not connected; call connect() or recover()", "device")
        age_s = time.monotonic() - self._arrived_s
        if self._measured is None or age_s > self._stale_after_s:
            why = f" ({self._unusable})" if self._unusable else ""
            raise StaleData(f"{self._topics[0]}: no new joint states for {age_s:.3f} s, limit {self._stale_after_s:g} s{why}", "link_lost")
        return self._measured

    def _check_controller(self) -> None:
        if self._publisher.get_subscription_count() == 0:
            raise DeviceError(f"nobody listens on {self._topics[1]}; is the joint_trajectory_controller loaded and active?", "controller")
        if self._fault:
            raise DeviceError(self._fault, "not_following")

    def _check_following(self, position: np.ndarray, measured: np.ndarray) -> None:
        lag_rad, now_s = np.abs(position - measured), time.monotonic()
        if lag_rad.max() < _FOLLOWS * self._lead_rad:
            self._lagging_s = None
            return
        self._lagging_s = self._lagging_s or now_s
        if now_s - self._lagging_s > self._follow_timeout_s:
            lag = f"{self.robot.joints[int(lag_rad.argmax())]} lags {lag_rad.max():.3f} rad behind for {self._follow_timeout_s:g} s"
            self._fault = f"{lag}; is the controller active (ros2 control list_controllers), is the arm free? Then ~/recover"
            self._check_controller()

    def _publish(self, position: np.ndarray, within_s: float) -> None:
        """Positions only: newer controllers reject a trajectory that ends with a velocity. Stamp 0 means: from now on."""
        point = JointTrajectoryPoint(positions=(position - self._shift).tolist(), time_from_start=Duration(seconds=within_s).to_msg())
        self._publisher.publish(JointTrajectory(joint_names=list(self._names), points=[point]))

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                self._fresh()
                self._check_controller()
                return
            except (StaleData, DeviceError) as error:
                if time.monotonic() > deadline_s:
                    raise DeviceError(f"{error}; is the driver stack up (ros2 topic hz {self._topics[0]})?", "device") from error
            time.sleep(0.02)


def _column(values: Sequence[float], order: list[int]) -> np.ndarray:
    """Returns the joints' values [N]; zeros when the stack does not tell them."""
    return np.array([values[i] for i in order]) if len(values) > max(order) else np.zeros(len(order))
