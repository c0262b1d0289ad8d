"""What a rollout tells: its topics, feedback, result and diagnostics."""

from __future__ import annotations

import json

from vla_msgs.action import ExecuteTask
from vla_msgs.msg import ActionChunk, RolloutStatus, SkillPlan
from vla_ros.core.types import Inference
from vla_ros.nodes import msgs, qos
from vla_ros.nodes.lifecycle import ERROR, OK, WARN, Health, VlaNode
from vla_ros.nodes.rollout import ABORTED, Rollout, Stage


class RolloutTopics:
    """`~/chunk`, `~/plan` and `~/status` of a policy node."""

    def __init__(self, node: VlaNode) -> None:
        self._node = node
        self._chunks = node.create_publisher(ActionChunk, "~/chunk", qos.CHUNK)
        self._plans = node.create_publisher(SkillPlan, "~/plan", qos.CHUNK)
        self._status = node.create_publisher(RolloutStatus, "~/status", qos.CHUNK)
        self._published: Inference | None = None

    def inference(self, inference: Inference | None) -> None:
        """Publishes an inference, each once."""
        if inference is self._published:
            return
        self._published = inference
        if inference is not None:
            self._chunks.publish(msgs.chunk_msg(inference.chunk))
            if inference.plan is not None:
                self._plans.publish(msgs.plan_msg(inference.plan))

    def status(self, rollout: Rollout | None, now_ns: int, policy: str, executor: str) -> None:
        """Publishes how the rollout is doing."""
        self._status.publish(status_msg(rollout, now_ns, policy, executor))

    def close(self) -> None:
        """Gives the publishers back to the node."""
        for publisher in (self._chunks, self._plans, self._status):
            self._node.destroy_publisher(publisher)


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


def result_msg(rollout: Rollout, executor: str) -> ExecuteTask.Result:
    """How an ended rollout went; figures without a sample are null in the JSON."""
    statistics = json.dumps({"executor": executor, **rollout.result()}, allow_nan=False)
    return ExecuteTask.Result(outcome=rollout.outcome, reason=rollout.reason, duration_s=rollout.duration_s, statistics=statistics)


def health(rollout: Rollout | None, values: dict[str, object]) -> Health:
    """The line of /diagnostics; `values` go along."""
    if rollout is None:
        return Health(OK, "ready", values)
    values = values | {"chunks": rollout.statistics.chunks, "hold_reason": rollout.hold_reason, "instruction": rollout.goal.instruction}
    if rollout.stage is Stage.ENDED:
        return Health(ERROR if rollout.outcome == ABORTED else OK, f"{rollout.outcome}: {rollout.reason}", values)
    if rollout.stage is Stage.RUNNING and rollout.hold_reason:
        return Health(WARN, "holding", values)
    return Health(OK, rollout.stage.value, values)


def _state(rollout: Rollout) -> int:
    if rollout.stage is not Stage.RUNNING or not rollout.statistics.chunks:
        return RolloutStatus.STATE_WAITING
    return RolloutStatus.STATE_HOLDING if rollout.hold_reason else RolloutStatus.STATE_RUNNING


def _newest(values: list[float]) -> float:
    return values[-1] if values else 0.0
