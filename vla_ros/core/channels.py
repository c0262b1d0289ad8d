"""The names of the values in actions and states, and what each kind of value allows.

`<joint>.position` (rad), `<joint>.velocity` (rad/s), `tcp.x|y|z` (m), `tcp.rx|ry|rz` (rotation vector, rad),
`gripper.width` (m), `gripper.closed` (0/1); with `left.` or `right.` before them on two arms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vla_ros.core.errors import DataError

ARMS = ("left", "right")
TCP_POSITION = ("tcp.x", "tcp.y", "tcp.z")
TCP_ROTATION = ("tcp.rx", "tcp.ry", "tcp.rz")
TCP_POSE = TCP_POSITION + TCP_ROTATION
GRIPPERS = ("gripper.width", "gripper.closed")
MODES = ("joint_position", "joint_velocity", "tcp_pose")


def split(channel: str) -> tuple[str, str]:
    """Returns (arm, name): `left.tcp.x` -> ("left", "tcp.x"), `tcp.x` -> ("", "tcp.x")."""
    arm, _, name = channel.partition(".")
    return (arm, name) if arm in ARMS and name else ("", channel)


def join(arm: str, name: str) -> str:
    """The inverse of `split`."""
    return f"{arm}.{name}" if arm else name


def for_arm(channels: Iterable[str], arm: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the indices and the bare names of the channels that belong to `arm` ("" for a single arm)."""
    found = [(i, split(channel)[1]) for i, channel in enumerate(channels) if split(channel)[0] == arm]
    return tuple(i for i, _ in found), tuple(name for _, name in found)


@dataclass(frozen=True)
class Groups:
    """Which columns may be averaged, and how. All are index arrays into the channels.

    `rotations` [R, 3] are the rx, ry, rz of one arm each, to be turned as one rotation; `grippers` [G] must never be averaged;
    `linear` [L] is all the rest. `joints` [J] (rad) and `translations` [K, 3] (m) are the parts of `linear` with a unit of their own.
    """

    linear: np.ndarray
    rotations: np.ndarray
    grippers: np.ndarray
    joints: np.ndarray
    translations: np.ndarray


def _triples(channels: tuple[str, ...], names: tuple[str, str, str]) -> np.ndarray:
    """Returns [K, 3] columns of `names`, one row an arm; raises DataError for an arm that has some of them only."""
    found: dict[str, dict[str, int]] = {}
    for i, channel in enumerate(channels):
        arm, name = split(channel)
        if name in names:
            found.setdefault(arm, {})[name] = i
    for arm, columns in found.items():
        missing = [join(arm, name) for name in names if name not in columns]
        if missing:
            raise DataError(f"channels {', '.join(channels)}: {', '.join(missing)} is missing beside {', '.join(columns)}", "channels")
    return np.array([[columns[name] for name in names] for columns in found.values()], dtype=np.intp).reshape(-1, 3)


def group(channels: tuple[str, ...]) -> Groups:
    """Sorts columns by what may be done with them. Raises DataError for an incomplete tcp.x|y|z or tcp.rx|ry|rz."""
    bare = [split(channel)[1] for channel in channels]
    rotations = _triples(channels, TCP_ROTATION)
    grippers = [i for i, name in enumerate(bare) if name in GRIPPERS]
    apart = {*rotations.ravel().tolist(), *grippers}
    return Groups(
        linear=np.array([i for i in range(len(bare)) if i not in apart], dtype=np.intp),
        rotations=rotations,
        grippers=np.array(grippers, dtype=np.intp),
        joints=np.array([i for i, name in enumerate(bare) if name.endswith(".position")], dtype=np.intp),
        translations=_triples(channels, TCP_POSITION),
    )


def _kind(channel: str) -> str:
    _, name = split(channel)
    if name in GRIPPERS:
        return "gripper"
    if name in TCP_POSE:
        return "tcp_pose"
    joint, _, quantity = name.rpartition(".")
    if joint and joint not in ("tcp", "gripper") and quantity in ("position", "velocity"):
        return f"joint_{quantity}"
    raise DataError(
        f"channel '{channel}' has no meaning; valid: <joint>.position, <joint>.velocity, {', '.join(TCP_POSE + GRIPPERS)}, "
        "with left. or right. before them on two arms",
        "channels",
    )


def mode_of(channels: Iterable[str]) -> str:
    """Returns the one control mode of the channels: "joint_position", "joint_velocity" or "tcp_pose".

    Raises:
        DataError: a name without a meaning, two modes at once, none (grippers only), an incomplete TCP pose,
            two gripper channels for one arm.
    """
    return _mode_of(tuple(channels))


@lru_cache(maxsize=64)  # every command asks several times, always for the same few names
def _mode_of(names: tuple[str, ...]) -> str:
    modes = sorted({_kind(name) for name in names} - {"gripper"})
    if len(modes) != 1:
        found = ", ".join(modes) or "none"
        raise DataError(f"channels {', '.join(names)}: control modes {found}; expected exactly one of {', '.join(MODES)}", "channels")
    grippers = [split(name)[0] for name in names if _kind(name) == "gripper"]
    if len(set(grippers)) != len(grippers):
        raise DataError(f"channels {', '.join(names)}: give gripper.width or gripper.closed for one arm, not both", "channels")
    if modes[0] == "tcp_pose" and len(_triples(names, TCP_POSITION)) != len(_triples(names, TCP_ROTATION)):
        raise DataError(f"channels {', '.join(names)}: a TCP pose needs all of {', '.join(TCP_POSE)}", "channels")
    return modes[0]
