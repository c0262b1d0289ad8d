"""All arms of an embodiment as one state, with forward kinematics. Free of ROS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_ros.core.channels import TCP_POSE, join
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError
from vla_ros.core.types import Proprioception, RobotState
from vla_ros.robots.kinematics import Kinematics


class MergedState:
    """Feed it measurements with `add`; when `complete`, `take` gives the merged state.

    Args:
        embodiment: its robots are merged, each under its prefix.
        max_age_s: an older measurement is stale.
    """

    def __init__(self, embodiment: Embodiment, max_age_s: float) -> None:
        self._robots, self._max_age_s = embodiment.robots, max_age_s
        self._kinematics = {name: Kinematics(robot) for name, robot in embodiment.robots.items()}
        self._states: dict[str, RobotState] = {}
        self._new: set[str] = set()
        names: list[str] = []
        for name, robot in embodiment.robots.items():
            bare = [f"{joint}.{what}" for what in ("position", "velocity") for joint in robot.joints] + list(TCP_POSE)
            bare += ["gripper.width"] if robot.gripper else []
            names += [join(embodiment.prefix(name), channel) for channel in bare]
        self._channels = tuple(names)
        self._joint_prefix = {name: f"{embodiment.prefix(name)}_".lstrip("_") for name in embodiment.robots}

    def add(self, robot: str, state: RobotState) -> None:
        """Takes a measurement; one that is not newer is ignored. Raises DataError for other joints than the embodiment's."""
        description = self._robots[robot]
        if state.joint_names != description.joints:
            raise DataError(f"joints {', '.join(state.joint_names)}, expected {', '.join(description.joints)}")
        if description.gripper and state.gripper_width_m is None:
            raise DataError("no gripper width, but the embodiment has a gripper")
        if robot not in self._states or state.stamp_ns > self._states[robot].stamp_ns:
            self._states[robot] = state
            self._new.add(robot)

    @property
    def complete(self) -> bool:
        """Whether every arm brought something new since the last `take`."""
        return len(self._new) == len(self._robots)

    def take(self) -> Proprioception:
        """Returns the merged state, stamped with the oldest arm's measurement."""
        self._new.clear()
        parts: list[np.ndarray] = []
        for name, robot in self._robots.items():
            state = self._states[name]
            parts += [state.position, state.velocity, self._kinematics[name].tcp(state.position)]
            if robot.gripper:
                parts.append(np.array([state.gripper_width_m]))
        return Proprioception(min(state.stamp_ns for state in self._states.values()), self._channels, np.concatenate(parts))

    def joints(self) -> RobotState:
        """Returns all joints of all arms as one state, grippers (m) among them, named as in the URDF."""
        names: list[str] = []
        parts: dict[str, list[np.ndarray]] = {"position": [], "velocity": [], "effort": []}
        for robot, state in self._states.items():
            names += [self._robots[robot].joint_prefix + joint for joint in state.joint_names]
            for key, values in parts.items():
                values.append(getattr(state, key))
            if state.gripper_width_m is not None:
                names.append(f"{self._joint_prefix[robot]}gripper")
                for key, values in parts.items():
                    values.append(np.array([state.gripper_width_m if key == "position" else 0.0]))
        stamp_ns = min(state.stamp_ns for state in self._states.values())
        return RobotState(stamp_ns, tuple(names), *(np.concatenate(values) for values in parts.values()))

    def ages_s(self, now_ns: int) -> Mapping[str, float]:
        """Returns robot -> age of its newest measurement, s, of those that have brought one."""
        return {name: (now_ns - state.stamp_ns) * 1e-9 for name, state in self._states.items()}

    def stale(self, now_ns: int) -> str:
        """Returns which arm is missing or too old, "" when all are fresh."""
        for name in self._robots:
            if name not in self._states:
                return f"{name}: no joint states have come yet"
            if (now_ns - self._states[name].stamp_ns) * 1e-9 > self._max_age_s:
                return f"{name}: stale joint states, older than {self._max_age_s:g} s"
        return ""
