"""The QoS profiles of vla_ros, each with the reason for it. Both ends of a topic import the same one."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def _profile(depth: int, reliable: bool, *, latched: bool = False, lifespan_s: float | None = None) -> QoSProfile:
    profile = QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
    if lifespan_s is not None:
        profile.lifespan = Duration(nanoseconds=round(lifespan_s * 1e9))
    return profile


# An old image is worthless: the newest one or none.
IMAGE = _profile(1, reliable=False)
# Counts lost images, so it must not be lossy itself.
METADATA = _profile(50, reliable=True)
# Only the newest command counts; one that waited longer than its lifespan is dropped before it is delivered.
COMMAND = _profile(1, reliable=True, lifespan_s=0.5)
# What was executed is recorded: nothing may be lost.
EXECUTED = _profile(100, reliable=True)
# Joint states and proprioception; reliable so that tools with either setting can listen, shallow so that nobody sees old ones.
STATE = _profile(5, reliable=True)
# Of those only the newest, for who looks at them when it needs them.
NEWEST_STATE = _profile(1, reliable=False)
# The newest status, also for a node that starts later.
STATUS = _profile(1, reliable=True, latched=True)
# Chunks and plans: few, each one counts.
CHUNK = _profile(10, reliable=True)
DIAGNOSTICS = _profile(10, reliable=True)


def overridable() -> QoSOverridingOptions:
    """Lets a site change history, depth and reliability through `qos_overrides.<topic>.*` parameters."""
    return QoSOverridingOptions.with_default_policies()
