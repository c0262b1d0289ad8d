"""The arm beside this one, as its own node tells of it: for the distance between the two."""

from __future__ import annotations

import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from sensor_msgs.msg import JointState

from vla_ros.core.embodiment import Embodiment, RobotDescription
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.lifecycle import VlaNode

_STALE_S = 0.5


class _Untended(CallbackGroup):
    """What the executor leaves alone."""

    def can_execute(self, entity) -> bool:
        return False

    def beginning_execution(self, entity) -> bool:
        return False

    def ending_execution(self, entity) -> None:
        return None


class OtherArm:
    """The newest joint positions on `/<other>/joint_states`, for the robot node of `arm`. On a single arm there is nothing to know.

    A message is taken when the positions are asked for: 100 callbacks a second would cost more than all the rest of the node.
    Not thread-safe: one caller, or the caller's lock.

    Attributes:
        description: of the other arm; None on a single arm, and where the two share no URDF that says how they stand.
    """

    def __init__(self, node: VlaNode, embodiment: Embodiment, arm: str) -> None:
        self._node = node
        own = embodiment.robots[arm]
        self._name, other = next(((name, robot) for name, robot in embodiment.robots.items() if name != arm), ("", None))
        self._apart = other is not None and other.urdf != own.urdf
        self.description: RobotDescription | None = None if self._apart else other
        self._stamp_ns, self._position_rad = 0, None
        self._subscription = None
        if self.description is not None:
            self._subscription = node.create_subscription(
                JointState,
                f"/{self._name}/joint_states",
                self._on_state,
                qos.NEWEST_STATE,
                callback_group=_Untended(),
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
            )

    @property
    def unknown(self) -> str:
        """Why the distance between the arms is not looked at, a sentence for diagnostics; "" when it is."""
        if self._apart:
            return f"{self._name} has a URDF of its own: only this arm's own links are kept apart"
        if self.description is None or self.position_rad() is not None:
            return ""
        if not self._stamp_ns:
            return f"no joint states of {self._name} so far: only this arm's own links are kept apart"
        age_s = (self._node.now_ns() - self._stamp_ns) * 1e-9
        return f"joint states of {self._name} are {age_s:.1f} s old, limit {_STALE_S} s: only this arm's own links are kept apart"

    def position_rad(self) -> np.ndarray | None:
        """Returns the other arm's joint positions [M] rad, None when they are not known or older than 0.5 s."""
        self._take()
        fresh = abs(self._node.now_ns() - self._stamp_ns) <= _STALE_S * 1e9
        return self._position_rad if fresh else None

    def close(self) -> None:
        """Ends the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _take(self) -> None:
        if self._subscription is not None:
            with self._subscription.handle:
                taken = self._subscription.handle.take_message(JointState, False)
            if taken is not None:
                self._on_state(taken[0])

    def _on_state(self, message: JointState) -> None:
        position = positions(message, self.description)
        if position is not None:
            self._stamp_ns, self._position_rad = msgs.stamp_ns(message.header.stamp), position


def positions(message: JointState, robot: RobotDescription) -> np.ndarray | None:
    """Returns the joint positions [M] rad of `robot` in a message, None when it lacks one or one is not finite."""
    found = dict(zip(message.name, message.position, strict=False))
    position = np.array([found.get(joint, np.nan) for joint in robot.joints])
    return position if np.isfinite(position).all() else None
