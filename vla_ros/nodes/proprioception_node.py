"""Merges the arms of an embodiment into one `/proprioception` and one `/joint_states`."""

from __future__ import annotations

import sys
from functools import partial

from sensor_msgs.msg import JointState

from vla_msgs.msg import Proprioception
from vla_ros.core.errors import DataError
from vla_ros.core.rig import load_rig
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.lifecycle import ERROR, OK, WARN, Health, VlaNode, run
from vla_ros.nodes.merged_state import MergedState


class ProprioceptionNode(VlaNode):
    """Publishes whenever the slowest arm has brought something new; stops while an arm is stale."""

    def __init__(self, **kwargs) -> None:
        super().__init__("proprioception", **kwargs)
        self._max_age_s = self.parameter("max_age_s", 0.1, "s, an older measurement of an arm is stale", low=0.005, high=5)
        self._subscriptions_made = []
        self._problem = ""
        self._invalid = self._published = 0
        self._merged: MergedState | None = None
        self._state = self.create_publisher(Proprioception, "/proprioception", qos.STATE)
        self._joints = self.create_publisher(JointState, "/joint_states", qos.STATE)

    def setup(self) -> None:
        self._embodiment = load_rig(self.rig_name).embodiment
        self._merged = MergedState(self._embodiment, self._max_age_s)
        self._subscriptions_made = [
            self.create_subscription(JointState, f"/{name}/joint_states", partial(self._on_joints, name), qos.STATE)
            for name in self._embodiment.robots
        ]

    def teardown(self) -> None:
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        self._subscriptions_made = []

    def diagnose(self) -> Health:
        now_ns = self.now_ns()
        values = {f"{name} age_s": f"{age_s:.3f}" for name, age_s in self._merged.ages_s(now_ns).items()}
        values |= {"published": self._published, "invalid": self._invalid}
        stale = self._merged.stale(now_ns)
        if stale:
            return Health(ERROR, stale, values)
        return Health(WARN, self._problem, values) if self._problem else Health(OK, "running" if self.is_active else "inactive", values)

    def _on_joints(self, robot: str, message: JointState) -> None:
        now_ns = self.now_ns()
        try:
            self._merged.add(robot, msgs.robot_state_of(message))
            self._problem = ""
        except DataError as error:
            self._invalid, self._problem = self._invalid + 1, f"{robot}: {error}"
            self.get_logger().error(self._problem, throttle_duration_sec=1.0)
        if not self.is_active or not self._merged.complete or self._merged.stale(now_ns):
            return
        self._published += 1
        self._state.publish(msgs.proprioception_msg(self._merged.take(), self._embodiment.name, self._merged.ages_s(now_ns)))
        self._joints.publish(msgs.joint_state_msg(self._merged.joints()))


def main() -> int:
    """Console script `proprioception_node`."""
    return run(ProprioceptionNode)


if __name__ == "__main__":
    sys.exit(main())
