"""What a device or policy is. Implementations need no base class; they are ROS-free and live in the families."""

from __future__ import annotations

from typing import Protocol

from vla_ros.core.types import Action, Frame, Inference, Observation, PolicySpec, RobotState


class Robot(Protocol):
    """One connected arm with its gripper."""

    def connect(self) -> None:
        """Opens the link. Raises DeviceError with the address and the fix."""

    def read(self) -> RobotState:
        """Returns the newest measurement without blocking. Raises StaleData when the link is dead."""

    def command(self, action: Action) -> Action:
        """Sends absolute targets; returns what was really sent after the device's own limits. Never blocks on motion."""

    def stop(self) -> None:
        """Ends in safe hold at the measured position. Idempotent, from any state."""

    def recover(self) -> None:
        """Clears faults, reconnects a dead link, ends in safe hold. Raises DeviceError if it cannot."""

    def close(self) -> None:
        """Holds, then closes the link. Idempotent."""


class Camera(Protocol):
    """One colour camera."""

    def start(self) -> None:
        """Starts the stream. Raises DeviceError with the serial or file and the fix."""

    def read(self) -> Frame | None:
        """Returns a frame that was not yet returned, the newest or one of the few just before it, else None.

        Frames come in the order of their capture; never blocks longer than one frame period. Raises DeviceError when the camera is
        gone, with the reason "ended" at the end of a recording.
        """

    def stop(self) -> None:
        """Stops the stream. Idempotent."""


class Policy(Protocol):
    """Turns an observation into future actions."""

    spec: PolicySpec

    def reset(self) -> None:
        """Forgets the history; called before each rollout."""

    def infer(self, observation: Observation) -> Inference:
        """Returns a chunk whose stamp is the observation's. Raises PolicyError."""
