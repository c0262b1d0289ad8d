"""From the numbers of a LeRobot dataset to an embodiment's channels: names, units, grippers."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

import numpy as np

from vla_ros.core.channels import TCP_POSITION, split
from vla_ros.core.embodiment import Embodiment, Gripper
from vla_ros.core.errors import DataError, did_you_mean
from vla_ros.training.lerobot_files import LeRobotFolder

LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
ANGLES = {"rad": 1.0, "deg": np.pi / 180}
SHARES = ("open_share", "closed_share")  # of a gripper, 0 .. 1
UNITS = (*LENGTHS, *ANGLES, *SHARES)


class Channels:
    """Picks `channels` out of one feature [N, F] and turns them into m, rad and `gripper.closed` 0 | 1.

    Args:
        names: our channel: its name or index there; see `sources.Names`.
        units: channel or pattern: its unit there. Without one it is ours: m, rad, and 1 where a gripper is closed.

    Raises:
        DataError: a name that the feature does not have, or a unit that does not fit the channel.
    """

    def __init__(
        self,
        dataset: LeRobotFolder,
        feature: str,
        channels: tuple[str, ...],
        names: Mapping[str, object],
        units: Mapping[str, str],
        embodiment: Embodiment,
    ) -> None:
        there = dataset.columns(feature)
        owner = f"{dataset.folder}: {feature}"
        strangers = set(names) - set(channels)
        if strangers:
            raise DataError(f"{owner}: names for {', '.join(sorted(strangers))}; {embodiment.name} has {', '.join(channels)}")
        self._columns = [_column(owner, channel, names.get(channel, channel), there) for channel in channels]
        self._channels = channels
        self._units = [_unit(owner, channel, units) for channel in channels]
        self._grippers = {embodiment.prefix(name): robot.gripper for name, robot in embodiment.robots.items()}

    def convert(self, values: np.ndarray) -> np.ndarray:
        """[N, F] -> [N, channels]."""
        out = values[:, self._columns].copy()
        for i, (channel, unit) in enumerate(zip(self._channels, self._units, strict=True)):
            arm, name = split(channel)
            if name == "gripper.closed":
                out[:, i] = _closed(out[:, i], unit, self._grippers[arm])
            elif unit in SHARES:
                gripper = self._grippers[arm]
                share = out[:, i] if unit == "open_share" else 1 - out[:, i]
                out[:, i] = gripper.width_min_m + share * (gripper.width_max_m - gripper.width_min_m)
            else:
                out[:, i] *= {**LENGTHS, **ANGLES}[unit]
        return out


def _column(owner: str, channel: str, name: object, there: list[str]) -> int:
    if type(name) is int and 0 <= name < len(there):
        return name
    if str(name) not in there:
        raise DataError(f"{owner} has no '{name}' for {channel}; {did_you_mean(str(name), there)}: set names: of the source")
    return there.index(str(name))


def _unit(owner: str, channel: str, units: Mapping[str, str]) -> str:
    """The unit of a channel in the dataset."""
    _, name = split(channel)
    if name == "gripper.closed":
        valid = ("closed_share", "open_share", *LENGTHS)
    elif name == "gripper.width":
        valid = (*LENGTHS, *SHARES)
    else:
        valid = tuple(LENGTHS) if name in TCP_POSITION else tuple(ANGLES)
    unit = next((unit for pattern, unit in units.items() if fnmatch(channel, pattern)), valid[0])
    if unit not in valid:
        raise DataError(f"{owner}: units: {channel}: '{unit}'; {did_you_mean(unit, valid)}")
    return unit


def _closed(values: np.ndarray, unit: str, gripper: Gripper) -> np.ndarray:
    """Gripper commands -> 0 | 1; a width below the middle of the gripper's range is closed."""
    if unit in LENGTHS:
        return (values * LENGTHS[unit] < (gripper.width_min_m + gripper.width_max_m) / 2).astype(float)
    return (values > 0.5 if unit == "closed_share" else values < 0.5).astype(float)
