"""A driver stack as ros2_control runs it, over an arm without physics: `python trajectory_controller.py EMBODIMENT ARM OPTIONS_JSON`.

Otherwise as box.py. It does what joint_trajectory_controller does with a topic: names in any order but all of them, finite positions, at
least one point; from where it is heading now linearly to each point at its time, then it holds the last. Joint states come at 100 Hz in
another order and with a joint that is not the arm's. OPTIONS_JSON are the driver's; `joints` and `gripper` are looked at.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping

import numpy as np
import rclpy
from box import STEP_S, serve
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_ros.core.embodiment import load_embodiment
from vla_ros.sim.plant import KinematicPlant

FAULTS = ("silent", "frozen_stamp", "nan_state", "joint_missing", "inactive", "unloaded")
_STATES_EVERY_S = 0.01


class TrajectoryController:
    """A `box.Device`. Faults: no joint states, an old stamp on them, NaN, a joint missing, controller deactivated or unloaded."""

    def __init__(self, embodiment: str, arm: str, options: Mapping[str, object]) -> None:
        robot = load_embodiment(embodiment).robots[arm]
        self._plant = KinematicPlant(robot)
        self._names = list(options.get("joints") or robot.joints)
        self._gripper = options.get("gripper")
        self._open_m = robot.gripper.width_max_m if robot.gripper else 0.0
        self._topics = (
            options.get("joint_states", "/joint_states"),
            options.get("trajectory", "/joint_trajectory_controller/joint_trajectory"),
        )
        self._fault = ""
        self._frozen: JointState | None = None
        self._time_s, self._next_states_s = 0.0, 0.0
        self._path = [(0.0, np.array(robot.home_rad, dtype=np.float64))]  # (time, positions), the first is where it started

    def start(self) -> None:
        rclpy.init()
        self._node = rclpy.create_node("driver_stack")
        self._states = self._node.create_publisher(JointState, self._topics[0], 10)
        self._load()
        if self._gripper:
            self._node.create_subscription(Float64MultiArray, self._gripper["topic"], self._on_gripper, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)

    def step(self) -> float:
        self._executor.spin_once(timeout_sec=0)
        self._time_s += STEP_S
        self._plant.drive(self._desired())
        self._plant.step(STEP_S)
        if self._time_s >= self._next_states_s:
            self._next_states_s = self._time_s + _STATES_EVERY_S
            self._publish()
        return float(np.linalg.norm(self._plant.measure().velocity))

    def inject(self, fault: str) -> None:
        if fault not in FAULTS:
            raise ValueError(f"no fault '{fault}'; valid: {', '.join(FAULTS)}")
        self._fault, self._frozen = fault, None
        if fault == "unloaded":
            self._node.destroy_subscription(self._commands)
        if fault in ("inactive", "unloaded"):  # it holds where it is
            self._path = [(self._time_s, self._desired())]

    def clear(self) -> None:
        if self._fault == "unloaded":
            self._load()
        self._fault = ""

    def close(self) -> None:
        self._node.destroy_node()
        rclpy.shutdown()

    def _load(self) -> None:
        self._commands = self._node.create_subscription(JointTrajectory, self._topics[1], self._on_trajectory, 10)

    def _desired(self) -> np.ndarray:
        times = [time for time, _ in self._path]
        return np.array([np.interp(self._time_s, times, column) for column in np.transpose([point for _, point in self._path])])

    def _on_trajectory(self, message: JointTrajectory) -> None:
        points = [np.array(point.positions) for point in message.points]
        if self._fault in ("inactive", "unloaded") or sorted(message.joint_names) != sorted(self._names) or not points:
            return
        if not all(len(point) == len(self._names) and np.isfinite(point).all() for point in points):
            return
        order = [list(message.joint_names).index(name) for name in self._names]
        times = [self._time_s + point.time_from_start.sec + point.time_from_start.nanosec * 1e-9 for point in message.points]
        self._path = [(self._time_s, self._desired()), *((time, point[order]) for time, point in zip(times, points, strict=True))]

    def _on_gripper(self, message: Float64MultiArray) -> None:
        share = (message.data[0] - self._gripper["closed_at"]) / (self._gripper["open_at"] - self._gripper["closed_at"])
        self._plant.grip(share * self._open_m, 1.0)

    def _publish(self) -> None:
        if self._fault == "silent":
            return
        measured = self._plant.measure()
        message = JointState(name=["wheel", *reversed(self._names)])
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.position, message.velocity = [1.0, *measured.position[::-1]], [9.0, *measured.velocity[::-1]]
        if self._gripper:
            share = measured.gripper_width_m / self._open_m
            message.name = [*message.name, self._gripper["joint"]]
            message.position.append(self._gripper["closed_at"] + share * (self._gripper["open_at"] - self._gripper["closed_at"]))
            message.velocity.append(0.0)
        if self._fault == "frozen_stamp":
            self._frozen = self._frozen or message
            message.header.stamp = self._frozen.header.stamp
        if self._fault == "nan_state":
            message.position[1] = math.nan
        if self._fault == "joint_missing":
            message.name[1] = "another_joint"
        self._states.publish(message)


if __name__ == "__main__":
    serve(TrajectoryController(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
