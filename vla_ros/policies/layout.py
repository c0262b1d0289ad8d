"""How one embodiment's numbers look to a network: which channels, relative to what, normalised how. All systems share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_ros.core.channels import TCP_POSE, join, split
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import PolicyError
from vla_ros.policies.normalization import Quantiles
from vla_ros.policies.poses import absolute_poses, relative_poses, state_features

POSE_FEATURES = 9  # position and two columns of the rotation matrix
OPEN, CLOSED = -1.0, 1.0
# The least range of a normalised value (m, rad): below it lies noise, not motion.
_LEAST_POSE = (0.02, 0.02, 0.02, 0.1, 0.1, 0.1)
_LEAST_JOINT = 0.1
_LEAST_STATE = {"pose": (0.1,) * 3 + (0.2,) * 6, "joint": 0.2, "gripper": 0.02}


@dataclass(frozen=True)
class Arm:
    """Where one arm's numbers stand: `motion` columns are poses (6) or joints (N), then comes one gripper column."""

    name: str
    start: int
    motion: int
    pose: bool

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.motion)

    @property
    def gripper(self) -> int:
        return self.start + self.motion


@dataclass(frozen=True)
class Layout:
    """One embodiment as a network sees it.

    Args:
        embodiment: its name.
        cameras: views in the order of the network.
        state: S proprioception channels that are read.
        channels: D action channels of a chunk, absolute: for each arm its TCP pose or its joints, then `gripper.closed`.
        normalization: {"state": {"low", "high"} [F], "action": {"low", "high"} [T, D]} of `features` and `relative`.
    """

    embodiment: str
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    channels: tuple[str, ...]
    normalization: Mapping[str, object]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms in the order of the channels."""
        arms, start = [], 0
        for column, channel in enumerate(self.channels):
            name, quantity = split(channel)
            if quantity == "gripper.closed":
                first = split(self.channels[start])[1]
                arms.append(Arm(name, start, column - start, first.startswith("tcp.")))
                start = column + 1
        return tuple(arms)

    @property
    def grippers(self) -> np.ndarray:
        """bool [D]: the columns that are open (-1) or closed (1) and nothing between."""
        return np.isin(np.arange(len(self.channels)), [arm.gripper for arm in self.arms])

    @property
    def feature_count(self) -> int:
        """F, the width of `features`."""
        return sum((POSE_FEATURES if arm.pose else arm.motion) + 1 for arm in self.arms)

    def features(self, state: np.ndarray) -> np.ndarray:
        """[..., S] as measured -> [..., F]: poses without their wrap at pi, joints and finger openings as they are."""
        parts = []
        for arm in self.arms:
            own, width = state[..., arm.columns], state[..., arm.gripper]
            parts.append(state_features(own, width) if arm.pose else np.concatenate([own, width[..., None]], axis=-1))
        return np.concatenate(parts, axis=-1)

    def relative(self, targets: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Absolute targets [..., T, D] -> motion from the measured state [..., S]; grippers 0 | 1 become -1 | 1."""
        out = np.empty(np.shape(targets))
        for arm in self.arms:
            now, wanted = state[..., arm.columns], targets[..., arm.columns]
            out[..., arm.columns] = relative_poses(wanted, now) if arm.pose else wanted - now[..., None, :]
            out[..., arm.gripper] = 2 * targets[..., arm.gripper] - 1
        return out

    def absolute(self, motion: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The inverse of `relative`; what is above 0 closes the gripper."""
        out = np.empty(np.shape(motion))
        for arm in self.arms:
            now, moved = state[..., arm.columns], motion[..., arm.columns]
            out[..., arm.columns] = absolute_poses(moved, now) if arm.pose else moved + now[..., None, :]
            out[..., arm.gripper] = motion[..., arm.gripper] > 0
        return out

    def measure(self, features: np.ndarray, motion: np.ndarray) -> dict[str, object]:
        """Returns the normalisation of `features` [N, F] and `motion` [N, T, D]: 1 % and 99 % quantiles, every row of a chunk its own."""
        least_state, least_motion = [], []
        for arm in self.arms:
            least_state += [*(_LEAST_STATE["pose"] if arm.pose else (_LEAST_STATE["joint"],) * arm.motion), _LEAST_STATE["gripper"]]
            least_motion += [*(_LEAST_POSE if arm.pose else (_LEAST_JOINT,) * arm.motion), 2.0]
        action = Quantiles.measure(motion, np.array(least_motion))
        action.low[..., self.grippers], action.high[..., self.grippers] = OPEN, CLOSED
        return {"state": Quantiles.measure(features, np.array(least_state)).to_json(), "action": action.to_json()}

    def statistics(self, horizon: int, origin: str) -> tuple[Quantiles, Quantiles]:
        """Returns (state [F], action [T, D]). Raises PolicyError that names `origin` when they are missing or misshapen."""
        owner = f"{origin}: layouts.{self.embodiment}.normalization"
        return (
            Quantiles.from_json(self.normalization.get("state"), (self.feature_count,), f"{owner}.state"),
            Quantiles.from_json(self.normalization.get("action"), (horizon, len(self.channels)), f"{owner}.action"),
        )


def layout_for(embodiment: Embodiment, cameras: tuple[str, ...], normalization: Mapping[str, object] | None = None) -> Layout:
    """Returns the layout of `embodiment` in its own control mode. Raises PolicyError: joint velocities, or a camera it lacks."""
    absent = [name for name in cameras if name not in embodiment.cameras]
    if absent or not cameras:
        raise PolicyError(f"cameras {list(cameras)}; {embodiment.name} has {list(embodiment.cameras)}")
    if embodiment.control.mode == "joint_velocity":
        raise PolicyError(f"{embodiment.name}: control.mode joint_velocity; policies drive tcp_pose or joint_position")
    state, channels = [], []
    for name, robot in embodiment.robots.items():
        arm = name if len(embodiment.robots) > 1 else ""
        names = TCP_POSE if embodiment.control.mode == "tcp_pose" else [f"{joint}.position" for joint in robot.joints]
        own = [join(arm, channel) for channel in names]
        state += [*own, join(arm, "gripper.width")]
        channels += [*own, join(arm, "gripper.closed")]
    return Layout(embodiment.name, tuple(cameras), tuple(state), tuple(channels), normalization or {})
