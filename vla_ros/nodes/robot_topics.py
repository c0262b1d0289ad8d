"""What a robot node publishes: joint states, what was executed, and who drives."""

from __future__ import annotations

from collections.abc import Mapping

from sensor_msgs.msg import JointState

from vla_msgs.msg import RobotCommand, RobotStatus
from vla_ros.core.types import Action, RobotState
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.lifecycle import VlaNode

_STATUS_PERIOD_NS = 100_000_000


class RobotTopics:
    """`~/joint_states`, `~/executed` and `~/status` of one arm; None is not published."""

    def __init__(self, node: VlaNode) -> None:
        self._node = node
        self._told, self._told_ns = None, 0
        self._joint_states = node.create_publisher(JointState, "~/joint_states", qos.STATE, qos_overriding_options=qos.overridable())
        self._executed = node.create_publisher(RobotCommand, "~/executed", qos.EXECUTED)
        self._status = node.create_publisher(RobotStatus, "~/status", qos.STATUS)

    def measured(self, state: RobotState | None) -> None:
        if state is not None:
            self._joint_states.publish(msgs.joint_state_msg(state))

    def executed(self, action: Action | None) -> None:
        if action is not None:
            self._executed.publish(msgs.command_msg(action))

    def status(self, shown: tuple[int, str, str, str], accepted: int, rejected: Mapping[str, int]) -> bool:
        """Published on every change of `shown` (state, source, reason, detail), and at 10 Hz; returns whether it changed."""
        now_ns, changed = self._node.steady_ns(), shown != self._told
        if changed or now_ns - self._told_ns >= _STATUS_PERIOD_NS:
            self._told, self._told_ns = shown, now_ns
            self._status.publish(msgs.status_msg(self._node.now_ns(), *shown, accepted, rejected))
        return changed
