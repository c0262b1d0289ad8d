"""Commands to move, in the units of this project, and as the messages that the base takes (degrees)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_ros.robots.kortex import codes
from vla_ros.robots.kortex.codes import Function
from vla_ros.robots.kortex.messages import Message, new

_TWIST = ("linear_x", "linear_y", "linear_z", "angular_x", "angular_y", "angular_z")


@dataclass(frozen=True)
class Motion:
    """Goes on until the base gets another one; `function` says what `values` are: see `joint_speeds` and `twist`."""

    function: Function
    values: np.ndarray

    @property
    def moves(self) -> bool:
        return bool(self.values.any())

    def zero(self) -> Motion:
        """Returns the same command at no speed: the arm stands, under the same control."""
        return Motion(self.function, np.zeros_like(self.values))

    def message(self) -> Message:
        """Returns what `function` takes."""
        if self.function == codes.SEND_TWIST:
            values = np.concatenate([self.values[:3], np.degrees(self.values[3:])])
            return new(
                "TwistCommand", reference_frame=codes.BASE_FRAME, twist=new("Twist", **dict(zip(_TWIST, map(float, values), strict=True)))
            )
        degrees = np.degrees(self.values)
        return new("JointSpeeds", joint_speeds=[new("JointSpeed", joint_identifier=i, value=float(v)) for i, v in enumerate(degrees)])


def joint_speeds(velocity_rad_s: np.ndarray) -> Motion:
    """Returns the command to go with joint velocities [N]."""
    return Motion(codes.SEND_JOINT_SPEEDS, np.array(velocity_rad_s))


def twist(values: np.ndarray) -> Motion:
    """Returns the command to move the tool with a twist [6]: velocity (m/s) and angular velocity (rad/s) along the axes of the base."""
    return Motion(codes.SEND_TWIST, np.array(values))
