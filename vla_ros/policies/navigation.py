"""Waypoints of a mobile base as one more channel layout: (dx, dy, dtheta) from each waypoint to the next, in the ground plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout
from vla_ros.policies.normalization import Quantiles

CHANNELS = ("base.dx", "base.dy", "base.dtheta")  # m, m, rad; x forward, y left of the waypoint before
_LEAST_MOTION = (0.02, 0.02, 0.02)


@dataclass(frozen=True)
class NavigationLayout(Layout):
    """A base without arms. Its targets already are relative, so `relative` and `absolute` leave them as they are; it reads no state."""

    def features(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(state, dtype=np.float64)

    def relative(self, targets: np.ndarray, state: np.ndarray) -> np.ndarray:
        return np.array(targets, dtype=np.float64)

    def absolute(self, motion: np.ndarray, state: np.ndarray) -> np.ndarray:
        return np.array(motion, dtype=np.float64)

    def measure(self, features: np.ndarray, motion: np.ndarray) -> dict[str, object]:
        """Returns the normalisation of `motion` [N, T, 3], see `Layout.measure`."""
        return {"state": {"low": [], "high": []}, "action": Quantiles.measure(motion, np.array(_LEAST_MOTION)).to_json()}


def navigation_layout(name: str, cameras: tuple[str, ...], normalization: Mapping[str, object] | None = None) -> NavigationLayout:
    """Returns the layout of the mobile base `name`. Raises PolicyError without a camera."""
    if not cameras:
        raise PolicyError(f"{name}: navigation needs at least one camera")
    return NavigationLayout(name, tuple(cameras), (), CHANNELS, normalization or {})


def waypoints(path: np.ndarray) -> np.ndarray:
    """Poses (x, y, theta) [..., T + 1, 3] in one frame (m, rad) -> (dx, dy, dtheta) [..., T, 3]; turns are the short way round."""
    step = np.diff(path, axis=-2)
    heading = path[..., :-1, 2]
    cosine, sine = np.cos(heading), np.sin(heading)
    forward, left = cosine * step[..., 0] + sine * step[..., 1], cosine * step[..., 1] - sine * step[..., 0]
    turn = (step[..., 2] + np.pi) % (2 * np.pi) - np.pi
    return np.stack([forward, left, turn], axis=-1)


def path_along(steps: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The inverse: steps [..., T, 3] from the pose `start` [..., 3] -> poses [..., T + 1, 3] (theta is not wrapped)."""
    poses = [np.asarray(start, dtype=np.float64)]
    for step in np.moveaxis(steps, -2, 0):
        x, y, heading = np.moveaxis(poses[-1], -1, 0)
        cosine, sine = np.cos(heading), np.sin(heading)
        dx, dy, turn = np.moveaxis(step, -1, 0)
        poses.append(np.stack([x + cosine * dx - sine * dy, y + sine * dx + cosine * dy, heading + turn], axis=-1))
    return np.stack(poses, axis=-2)
