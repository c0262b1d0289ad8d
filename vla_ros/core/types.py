"""The values that travel through vla_ros. Stamps are ns since the epoch (ROS system time), SI units, REP-103 frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vla_ros.core.errors import DataError


def _floats(name: str, value: object, ndim: int) -> np.ndarray:
    """Returns a read-only float64 array of `ndim` dimensions, or raises DataError that names the field."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not an array of numbers ({error})", "shape") from None
    if array.ndim != ndim:
        raise DataError(f"{name}: {array.ndim} dimensions {array.shape}, expected {ndim}", "shape")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values are NaN or infinite", "not_finite")
    array.setflags(write=False)
    return array


def _channels(channels: object, width: int, owner: str) -> tuple[str, ...]:
    names = tuple(str(name) for name in channels)
    if len(names) != width:
        raise DataError(f"{owner}: {len(names)} channel names for {width} columns: {', '.join(names)}", "channels")
    if len(set(names)) != len(names):
        raise DataError(f"{owner}: a channel is named twice: {', '.join(names)}", "channels")
    return names


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera (pixels), as in sensor_msgs/CameraInfo.

    `distortion_model` gives `distortion` its meaning: "plumb_bob" (k1, k2, t1, t2, k3), "rational_polynomial" (k1, k2, t1, t2, k3 .. k6)
    or "equidistant" (k1 .. k4).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    distortion_model: str = "plumb_bob"


@dataclass(frozen=True)
class Frame:
    """One colour image. `image` is uint8 [H, W, 3] RGB; `stamp_ns` is its **capture** time; `number` counts from 0.

    `depth` uint16 [H, W] is aligned to the image (same pixels, same intrinsics): value x `depth_scale_m` is metres, 0 is unknown.
    """

    stamp_ns: int
    image: np.ndarray
    number: int
    frame_id: str
    intrinsics: Intrinsics | None = None
    depth: np.ndarray | None = None
    depth_scale_m: float = 0.001


@dataclass(frozen=True)
class RobotState:
    """What one arm measured at `stamp_ns`.

    `position` [N] rad, `velocity` [N] rad/s, `effort` [N] N m, in the order of `joint_names`;
    `gripper_width_m` is the opening between the fingers, None without a gripper.
    """

    stamp_ns: int
    joint_names: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    gripper_width_m: float | None = None


@dataclass(frozen=True)
class Proprioception:
    """The merged state of all arms of an embodiment at `stamp_ns` (the oldest arm's measurement).

    `channels` / `data` [D] name every value as actions do: `<joint>.position`, `<joint>.velocity`,
    `tcp.x|y|z` (m, in `base_link`), `tcp.rx|ry|rz` (rotation vector, rad), `gripper.width` (m), with `left.` / `right.` on two arms.
    """

    stamp_ns: int
    channels: tuple[str, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        data = _floats("proprioception", self.data, 1)
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "channels", _channels(self.channels, data.shape[0], "proprioception"))

    def select(self, channels: tuple[str, ...]) -> np.ndarray:
        """Returns the values of `channels` [len(channels)]; raises DataError for one that is missing."""
        index = {name: i for i, name in enumerate(self.channels)}
        missing = [name for name in channels if name not in index]
        if missing:
            raise DataError(f"proprioception lacks {', '.join(missing)}; it has {', '.join(self.channels)}", "channels")
        return self.data[[index[name] for name in channels]]


@dataclass(frozen=True)
class Prefix:
    """The committed actions, at the row times of the chunk that is about to be inferred: row k is for `stamp_ns + k * dt_s`.

    `data` [T, D] absolute targets named by `channels`; `weights` [T] of the guidance: 1 for rows that will have been executed when the
    chunk arrives, falling to 0. Rows past the end of the committed chunk repeat its last row and have weight 0: never read them alone.
    """

    stamp_ns: int
    dt_s: float
    channels: tuple[str, ...]
    data: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Observation:
    """What a policy sees: one instant `stamp_ns` (the oldest camera's capture stamp), newest frames, state sampled at that instant.

    With the `rtc` executor, `prefix` is what is already committed from there on: a flow policy continues it, others do not look at it.
    """

    stamp_ns: int
    frames: dict[str, Frame]
    proprioception: Proprioception
    instruction: str
    prefix: Prefix | None = None


@dataclass(frozen=True)
class Action:
    """One command: `data` [D] absolute targets named by `channels`, for the instant `stamp_ns`."""

    channels: tuple[str, ...]
    data: np.ndarray
    stamp_ns: int = 0
    source: str = ""
    sequence: int = 0

    def __post_init__(self) -> None:
        data = _floats("action", self.data, 1)
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "channels", _channels(self.channels, data.shape[0], "action"))


@dataclass(frozen=True)
class ActionChunk:
    """Future absolute targets: row k of `data` [T, D] is for the instant `stamp_ns + k * dt_s`.

    Args:
        stamp_ns: capture time of the observation that the chunk answers.
        dt_s: time between rows, > 0.
        channels: D names (see `Proprioception`; grippers as `gripper.width` in m or `gripper.closed` 0/1).
        data: [T, D], T >= 1, finite.
        sequence: counts the chunks of one rollout from 0.
        policy, embodiment: who made it, for whom (text).
        inference_s: wall time of `infer`.
        info: further figures of the policy, name -> number.

    Raises:
        DataError: wrong shape, not finite, names and columns differ, dt_s <= 0.
    """

    stamp_ns: int
    dt_s: float
    channels: tuple[str, ...]
    data: np.ndarray
    sequence: int
    policy: str = ""
    embodiment: str = ""
    inference_s: float = 0.0
    info: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = _floats("action chunk", self.data, 2)
        if data.shape[0] < 1:
            raise DataError(f"action chunk: {data.shape[0]} rows, expected at least 1", "shape")
        if not 0 < self.dt_s < float("inf"):
            raise DataError(f"action chunk: dt_s = {self.dt_s}, expected > 0", "shape")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "channels", _channels(self.channels, data.shape[1], "action chunk"))

    @property
    def end_ns(self) -> int:
        """The instant of the last row."""
        return self.stamp_ns + round((self.data.shape[0] - 1) * self.dt_s * 1e9)


@dataclass(frozen=True)
class SkillPlan:
    """What a thinking policy says it is doing: the chain of skills, the step (from 0) and the skill of that step."""

    stamp_ns: int
    task_chain: tuple[str, ...]
    step: int
    skill: str
    text: str = ""


@dataclass(frozen=True)
class Inference:
    """What `Policy.infer` returns."""

    chunk: ActionChunk
    plan: SkillPlan | None = None


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs and gives. `cameras` are names of the rig's cameras, `state` the proprioception channels it reads."""

    name: str
    embodiment: str
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    channels: tuple[str, ...]
    horizon: int
    dt_s: float
