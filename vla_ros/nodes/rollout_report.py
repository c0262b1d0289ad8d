"""What a rollout tells: feedback, status and result messages."""

from __future__ import annotations

import json

from vla_msgs.action import ExecuteTask
from vla_msgs.msg import RolloutStatus
from vla_ros.nodes import msgs
from vla_ros.nodes.rollout import Rollout, Stage


def feedback_msg(rollout: Rollout, now_ns: int) -> ExecuteTask.Feedback:
    """The rollout as its client sees it."""
    plan = rollout.inference.plan if rollout.inference else None
    return ExecuteTask.Feedback(
        elapsed_s=rollout.elapsed_s(now_ns),
        chunks=rollout.statistics.chunks,
        inference_ms=_newest(rollout.statistics.inference_ms),
        observation_age_ms=_newest(rollout.statistics.observation_age_ms),
        hold_reason=rollout.hold_reason,
        skill=plan.skill if plan else "",
        step=plan.step if plan else 0,
    )


def status_msg(rollout: Rollout | None, now_ns: int, policy: str, executor: str) -> RolloutStatus:
    """The rollout as pages and recorders see it; idle without one."""
    message = RolloutStatus(stamp=msgs.stamp_msg(now_ns), state=RolloutStatus.STATE_IDLE, policy=policy, executor=executor)
    if rollout is None or rollout.stage is Stage.ENDED:
        return message
    statistics = rollout.statistics
    message.state = _state(rollout)
    message.instruction = rollout.goal.instruction
    message.elapsed_s = rollout.elapsed_s(now_ns)
    message.chunks = statistics.chunks
    message.inference_ms, message.observation_age_ms = _newest(statistics.inference_ms), _newest(statistics.observation_age_ms)
    message.boundary_jump_rad, message.boundary_jump_m = _newest(statistics.boundary_jump_rad), _newest(statistics.boundary_jump_m)
    message.hold_reason = rollout.hold_reason
    message.plan = msgs.plan_msg(rollout.inference.plan if rollout.inference else None)
    return message


def result_msg(rollout: Rollout) -> ExecuteTask.Result:
    """How an ended rollout went; figures without a sample are null in the JSON."""
    statistics = json.dumps(rollout.result(), allow_nan=False)
    return ExecuteTask.Result(outcome=rollout.outcome, reason=rollout.reason, duration_s=rollout.duration_s, statistics=statistics)


def _state(rollout: Rollout) -> int:
    if rollout.stage is not Stage.RUNNING or not rollout.statistics.chunks:
        return RolloutStatus.STATE_WAITING
    return RolloutStatus.STATE_HOLDING if rollout.hold_reason else RolloutStatus.STATE_RUNNING


def _newest(values: list[float]) -> float:
    return values[-1] if values else 0.0
