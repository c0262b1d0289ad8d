"""A robot without physics: it is where it was told to go by the time it is asked again. Also a driver by import path."""

from __future__ import annotations

import time

import numpy as np

from vla_ros.core.channels import TCP_POSE, mode_of
from vla_ros.core.embodiment import RobotDescription
from vla_ros.core.types import Action, RobotState
from vla_ros.robots.kinematics import Kinematics

PERIOD_S = 0.02


class FollowingArm:
    """`position` [N] rad is what it measures, `told` what it heard; `now_ns` None: the wall clock."""

    def __init__(self, robot: RobotDescription) -> None:
        self._robot, self._kinematics = robot, Kinematics(robot)
        self.position, self.told, self.now_ns = np.array(robot.home_rad), [], None

    def connect(self) -> None:
        pass

    def read(self) -> RobotState:
        rest = np.zeros(len(self.position))
        return RobotState(self.now_ns or time.time_ns(), self._robot.joints, self.position.copy(), rest, rest, 0.0)

    def command(self, action: Action) -> Action:
        mode = mode_of(action.channels)
        if mode == "tcp_pose":
            self.position = self._kinematics.ahead(self.position, action.data[[action.channels.index(name) for name in TCP_POSE]])
        elif mode == "joint_velocity":
            self.position = self.position + action.data[: len(self.position)] * PERIOD_S
        else:
            self.position = action.data[: len(self.position)].copy()
        self.told.append("command")
        return action

    def stop(self) -> None:
        self.told.append("stop")

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass
