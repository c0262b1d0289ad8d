"""The hand of a ros2_control arm: a topic or an action of its driver stack, told only what changes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_ros.core.embodiment import Gripper
from vla_ros.core.errors import ConfigError, NotInstalled, did_you_mean
from vla_ros.core.types import Action
from vla_ros.nodes import qos

_CLOSE_ABOVE, _OPEN_BELOW = 0.6, 0.4
_STEP_M = 0.002  # a wish that differs by less is no new one
_WITHIN_S = 0.3


class GripperCommander:
    """Sends widths as positions of the hand's joint.

    Args:
        gripper: widths and force. send: takes a joint position.
        joint: the hand's joint in the joint states. open_at, closed_at: its position when open and closed (rad or m).
    """

    def __init__(self, gripper: Gripper, send: Callable[[float], None], joint: str, open_at: float, closed_at: float) -> None:
        if open_at == closed_at:
            raise ConfigError(f"gripper: open_at and closed_at are both {open_at}")
        self.joint = joint
        self._gripper, self._send = gripper, send
        self._closed_at, self._per_m = closed_at, (open_at - closed_at) / gripper.width_max_m
        self._sent_m: float | None = None

    def width_m(self, position: float) -> float:
        """Returns the opening (m) at a position of the hand's joint."""
        return (position - self._closed_at) / self._per_m

    def command(self, action: Action) -> None:
        """Sends `gripper.width` or `gripper.closed` of an action when it is a new wish."""
        for name, value in zip(action.channels, action.data, strict=True):
            if name == "gripper.width":
                self._want(float(value))
            elif name == "gripper.closed" and (value > _CLOSE_ABOVE or value < _OPEN_BELOW):
                self._want(0.0 if value > _CLOSE_ABOVE else self._gripper.width_max_m)

    def _want(self, width_m: float) -> None:
        if self._sent_m is None or abs(width_m - self._sent_m) > _STEP_M:
            self._sent_m = width_m
            self._send(self._closed_at + width_m * self._per_m)


def gripper_commander(
    node: Node, gripper: Gripper, *, type: str, topic: str, joint: str, open_at: float, closed_at: float
) -> GripperCommander:
    """Returns what commands the hand over `topic`, which is a topic or an action, by `type` (a key of SENDERS).

    Raises:
        ConfigError: unknown type. NotInstalled: an action without control_msgs.
    """
    if type not in SENDERS:
        raise ConfigError(f"gripper.type: '{type}' is unknown; {did_you_mean(type, SENDERS)}")
    return GripperCommander(gripper, SENDERS[type](node, topic, joint, gripper.force_n), joint, open_at, closed_at)


def _trajectory(node: Node, topic: str, joint: str, force_n: float) -> Callable[[float], None]:
    publisher = node.create_publisher(JointTrajectory, topic, qos.COMMAND)

    def send(position: float) -> None:
        point = JointTrajectoryPoint(positions=[position], time_from_start=Duration(seconds=_WITHIN_S).to_msg())
        publisher.publish(JointTrajectory(joint_names=[joint], points=[point]))

    return send


def _positions(node: Node, topic: str, joint: str, force_n: float) -> Callable[[float], None]:
    publisher = node.create_publisher(Float64MultiArray, topic, qos.COMMAND)
    return lambda position: publisher.publish(Float64MultiArray(data=[position]))


def _gripper_command(node: Node, action: str, joint: str, force_n: float) -> Callable[[float], None]:
    kind = _control_action("GripperCommand")
    client = ActionClient(node, kind, action)

    def send(position: float) -> None:
        goal = kind.Goal()
        goal.command.position, goal.command.max_effort = position, force_n
        client.send_goal_async(goal)

    return send


def _parallel_gripper_command(node: Node, action: str, joint: str, force_n: float) -> Callable[[float], None]:
    kind = _control_action("ParallelGripperCommand")
    client = ActionClient(node, kind, action)
    return lambda position: client.send_goal_async(kind.Goal(command=JointState(name=[joint], position=[position], effort=[force_n])))


def _control_action(name: str) -> type:
    try:
        return getattr(import_module("control_msgs.action"), name)
    except ModuleNotFoundError:
        raise NotInstalled(f"gripper over {name} needs control_msgs: sudo apt install ros-$ROS_DISTRO-control-msgs") from None


SENDERS: dict[str, Callable[[Node, str, str, float], Callable[[float], None]]] = {
    "trajectory": _trajectory,
    "positions": _positions,
    "gripper_command": _gripper_command,
    "parallel_gripper_command": _parallel_gripper_command,
}
