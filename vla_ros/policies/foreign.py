"""How the numbers of a foreign policy become our channels, and ours become its state: shared by the bridges."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from vla_ros.core.channels import TCP_POSE, group, join, mode_of, split
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, PolicyError, did_you_mean
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies.poses import absolute_poses

SKIP = "skip"  # a column of the foreign policy that drives nothing
MEANINGS = ("absolute", "relative")
_ROWS_MAX = 1000
_CLOSED = "gripper.closed"


def option_names(option: str, value: object) -> tuple[str, ...]:
    """Returns a list of names from a rig. Raises PolicyError that names `policy.options.<option>`."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise PolicyError(f"policy.options.{option} = {value!r}, expected a list of names")
    return tuple(value)


def option_number(option: str, value: object, low: float, high: float) -> float:
    """Returns a number of `low` .. `high`. Raises PolicyError that names `policy.options.<option>`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise PolicyError(f"policy.options.{option} = {value!r}, expected {low:g} .. {high:g}")
    return float(value)


def option_cameras(value: object, embodiment: Embodiment) -> dict[str, str]:
    """Returns {key of the foreign policy: camera}. Raises PolicyError for a camera that `embodiment` lacks."""
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise PolicyError(f"policy.options.cameras = {value!r}, expected `key of the policy: camera` lines")
    for key, camera in value.items():
        if camera not in embodiment.cameras:
            raise PolicyError(f"policy.options.cameras.{key}: no camera {camera!r}; {did_you_mean(camera, embodiment.cameras)}")
    return dict(value)


class StateVector:
    """Some channels of the proprioception as one vector [S].

    Args:
        channels: names of `core.types.Proprioception`; `gripper.closed` stands for how far the gripper is closed, 0 (open) .. 1.
        embodiment: the robot that has them.
        option: its name in the rig, for messages.

    Raises:
        PolicyError: a name that the robot does not measure.
    """

    def __init__(self, channels: tuple[str, ...], embodiment: Embodiment, option: str) -> None:
        measured = measured_channels(embodiment)
        computed = [name[: -len("width")] + "closed" for name in measured if name.endswith("gripper.width")]
        for name in channels:
            if name not in measured and name not in computed:
                hint = did_you_mean(name, [*measured, *computed])
                raise PolicyError(f"policy.options.{option}: {embodiment.name} does not measure {name!r}; {hint}")
        self.channels = channels
        self.needs = tuple(name.replace(_CLOSED, "gripper.width") for name in channels)
        self._closed = []
        for column, name in enumerate(channels):
            arm, bare = split(name)
            if bare == _CLOSED:
                gripper = embodiment.robots[arm or next(iter(embodiment.robots))].gripper
                self._closed.append((column, gripper.width_min_m, gripper.width_max_m))

    def of(self, proprioception: Proprioception) -> np.ndarray:
        """Returns [S]. Raises DataError for a channel that is missing."""
        values = proprioception.select(self.needs).copy()
        for column, low_m, high_m in self._closed:
            values[column] = np.clip(1 - (values[column] - low_m) / (high_m - low_m), 0.0, 1.0)
        return values


class ActionColumns:
    """Rows of a foreign policy [T, C] as absolute targets [T, D].

    Args:
        columns: a channel for each of the C columns, or `SKIP`.
        meaning: "absolute", or "relative" to the state at the observation: joints and TCP positions are added, TCP rotations turned
            about the base axes (R_target = R_row R_measured). Grippers are always absolute; `gripper.closed` above 0.5 is closed.
        embodiment: the robot that they drive.
        option: their name in the rig, for messages.

    Raises:
        PolicyError: channels without a meaning or of another control mode than the robot's; relative velocities.
    """

    def __init__(self, columns: tuple[str, ...], meaning: object, embodiment: Embodiment, option: str = "channels") -> None:
        if meaning not in MEANINGS:
            raise PolicyError(f"policy.options.actions = {meaning!r}; say what the rows are: {' or '.join(MEANINGS)}")
        self._columns = columns
        self._used = [column for column, name in enumerate(columns) if name != SKIP]
        self.channels = tuple(columns[column] for column in self._used)
        try:
            mode, self._groups = mode_of(self.channels), group(self.channels)
        except DataError as error:
            raise PolicyError(f"policy.options.{option}: {error}") from None
        if len(set(self.channels)) != len(self.channels):
            raise PolicyError(f"policy.options.{option}: a channel is named twice: {', '.join(self.channels)}")
        if mode != embodiment.control.mode:
            raise PolicyError(
                f"policy.options.{option} are {mode}, but embodiment {embodiment.name} is driven by {embodiment.control.mode}"
            )
        self._relative = meaning == "relative"
        if self._relative and mode == "joint_velocity":
            raise PolicyError("policy.options.actions = relative: joint velocities are absolute")
        grippers = set(self._groups.grippers.tolist())
        self.needs = tuple(name for i, name in enumerate(self.channels) if i not in grippers) if self._relative else ()
        self._closed = [i for i in grippers if split(self.channels[i])[1] == _CLOSED]

    def rows(self, data: object, proprioception: Proprioception) -> np.ndarray:
        """Returns [T, D] in the order of `channels`.

        Args:
            data: the policy's answer, a numeric array [T, C].
            proprioception: the state at the observation.

        Raises:
            PolicyError: not numbers, another shape, NaN or infinity.
        """
        if not isinstance(data, np.ndarray) or data.dtype.kind not in "iuf":
            kind = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
            raise PolicyError(f"the actions are {kind}, expected an array of numbers [T, {len(self._columns)}]")
        if data.ndim != 2 or data.shape[1] != len(self._columns) or not 1 <= data.shape[0] <= _ROWS_MAX:
            expected = f"[1 .. {_ROWS_MAX}, {len(self._columns)}]: one column for each of {', '.join(self._columns)}"
            raise PolicyError(f"the actions have shape {list(data.shape)}, expected {expected}")
        rows = data[:, self._used].astype(np.float64)
        if not np.isfinite(rows).all():
            raise PolicyError(f"{np.count_nonzero(~np.isfinite(rows))} of {rows.size} actions are NaN or infinite")
        if self._relative:
            self._add(rows, dict(zip(self.needs, proprioception.select(self.needs), strict=True)))
        rows[:, self._closed] = rows[:, self._closed] > 0.5
        return rows

    def _add(self, rows: np.ndarray, state: Mapping[str, float]) -> None:
        rows[:, self._groups.joints] += [state[self.channels[i]] for i in self._groups.joints]
        turns = {split(self.channels[turn[0]])[0]: turn for turn in self._groups.rotations}
        for place in self._groups.translations:
            columns = [*place, *turns[split(self.channels[place[0]])[0]]]
            rows[:, columns] = absolute_poses(rows[:, columns], np.array([state[self.channels[i]] for i in columns]))


def measured_channels(embodiment: Embodiment) -> tuple[str, ...]:
    """Returns what the proprioception of `embodiment` holds."""
    names = []
    for robot, description in embodiment.robots.items():
        joints = [f"{joint}.{quantity}" for quantity in ("position", "velocity") for joint in description.joints]
        own = [*joints, *TCP_POSE, *(["gripper.width"] if description.gripper else [])]
        names += [join(embodiment.prefix(robot), name) for name in own]
    return tuple(names)


def frame_of(observation: Observation, camera: str) -> Frame:
    """Returns the frame of `camera`. Raises PolicyError when it is missing."""
    if camera not in observation.frames:
        raise PolicyError(f"the observation lacks camera {camera}; it has {', '.join(observation.frames) or '(none)'}")
    return observation.frames[camera]


def letterbox(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns uint8 [height, width, 3]: the whole picture in the middle, its aspect ratio kept, the rest black."""
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    out = np.zeros((height, width, 3), np.uint8)
    out[top : top + inner[1], left : left + inner[0]] = small
    return out
