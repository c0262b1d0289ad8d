"""Whether a chunk may drive an embodiment, and which part of an action is for which of its robots."""

from __future__ import annotations

from collections.abc import Iterator

from vla_ros.core.channels import GRIPPERS, TCP_POSE, for_arm, join, mode_of
from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, StaleData
from vla_ros.core.types import Action, ActionChunk

# Clocks of two machines differ a little; a stamp farther ahead is a mistake.
_AHEAD_NS = 50_000_000


def control_channels(embodiment: Embodiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the channels that a chunk must have and those that it may have besides (grippers)."""
    mode, needed, allowed = embodiment.control.mode, [], []
    for name, robot in embodiment.robots.items():
        arm = embodiment.prefix(name)
        bare = TCP_POSE if mode == "tcp_pose" else tuple(f"{joint}.{mode.removeprefix('joint_')}" for joint in robot.joints)
        needed += [join(arm, channel) for channel in bare]
        allowed += [join(arm, channel) for channel in GRIPPERS if robot.gripper]
    return tuple(needed), tuple(allowed)


def check_chunk(chunk: ActionChunk, embodiment: Embodiment, now_ns: int, inference_s: float) -> None:
    """Raises unless `chunk` can drive `embodiment` from `now_ns` on.

    Raises:
        DataError: channels that the embodiment lacks or needs, another embodiment, a stamp in the future.
        StaleData: the last row is in the past: the inference (`inference_s`, s) takes longer than the chunk lasts.
    """
    title = f"chunk of {chunk.policy or 'the policy'}"
    if chunk.embodiment not in ("", embodiment.name):
        raise DataError(f"{title} is for embodiment '{chunk.embodiment}', this is '{embodiment.name}'", "embodiment")
    needed, allowed = control_channels(embodiment)
    wrong = [name for name in chunk.channels if name not in needed + allowed]
    missing = [name for name in needed if name not in chunk.channels]
    if wrong or missing:
        parts = [f"{text} {', '.join(names)}" for text, names in (("unknown", wrong), ("missing", missing)) if names]
        takes = f"{embodiment.name} takes {', '.join(needed)} and may have {', '.join(allowed) or 'no others'}"
        raise DataError(f"{title}: channels {'; '.join(parts)}. {takes}", "channels")
    mode_of(chunk.channels)  # raises for gripper.width beside gripper.closed
    age_s, horizon_s = (now_ns - chunk.stamp_ns) * 1e-9, (chunk.end_ns - chunk.stamp_ns) * 1e-9
    if chunk.stamp_ns > now_ns + _AHEAD_NS:
        raise DataError(f"{title}: stamped {-age_s:.3f} s in the future; a chunk bears the stamp of its observation", "stamp")
    if chunk.end_ns < now_ns:
        raise StaleData(
            f"{title}: it reaches {horizon_s:.2f} s ahead of its observation, which is {age_s:.2f} s old "
            f"(inference took {inference_s:.2f} s); a longer horizon or a faster policy is needed",
            "stale",
        )


def by_robot(action: Action, embodiment: Embodiment) -> Iterator[tuple[str, Action]]:
    """Yields (robot, its part of `action` with the names that it knows)."""
    for name in embodiment.robots:
        indices, channels = for_arm(action.channels, embodiment.prefix(name))
        yield name, Action(channels, action.data[list(indices)], action.stamp_ns, action.source, action.sequence)
