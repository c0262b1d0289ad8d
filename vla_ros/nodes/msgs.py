"""Every conversion between messages and core types, as pure functions: `x_msg(core) -> message`, `x_of(message) -> core`.

What comes from the network is checked here: wrong lengths, NaN and unknown values raise DataError.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Header

from vla_msgs import msg as vla
from vla_ros.core.channels import mode_of
from vla_ros.core.errors import DataError
from vla_ros.core.types import Action, ActionChunk, Frame, Intrinsics, Proprioception, RobotState, SkillPlan

BASE_FRAME = "base_link"
GRIPPER_JOINT = "gripper"  # the entry of a JointState that holds the opening between the fingers, m
MODES = {
    "hold": vla.RobotCommand.MODE_HOLD,
    "joint_position": vla.RobotCommand.MODE_JOINT_POSITION,
    "joint_velocity": vla.RobotCommand.MODE_JOINT_VELOCITY,
    "tcp_pose": vla.RobotCommand.MODE_TCP_POSE,
}
ROBOT_STATES = {
    vla.RobotStatus.STATE_DISCONNECTED: "disconnected",
    vla.RobotStatus.STATE_HOLD: "hold",
    vla.RobotStatus.STATE_FOLLOWING: "following",
    vla.RobotStatus.STATE_STOPPED: "stopped",
}
DISTORTION_MODELS = ("plumb_bob", "rational_polynomial", "equidistant")
OUTCOMES = {vla.TaskOutcome.RUNNING: "running", vla.TaskOutcome.SUCCESS: "success", vla.TaskOutcome.FAILURE: "failure"}


def stamp_msg(stamp_ns: int) -> Time:
    """ns since the epoch -> message."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def stamp_ns(stamp: Time) -> int:
    """Message -> ns since the epoch."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def header_msg(stamp_ns: int, frame_id: str) -> Header:
    return Header(stamp=stamp_msg(stamp_ns), frame_id=frame_id)


def camera_info_msg(frame: Frame) -> CameraInfo:
    """The intrinsics of a frame, under its stamp. Raises DataError for a frame without intrinsics."""
    lens = frame.intrinsics
    if lens is None:
        raise DataError(f"frame {frame.number} of {frame.frame_id}: no intrinsics, so there is no camera_info to publish")
    return CameraInfo(
        header=header_msg(frame.stamp_ns, frame.frame_id),
        width=lens.width,
        height=lens.height,
        distortion_model=lens.distortion_model,
        d=list(lens.distortion),
        k=[lens.fx, 0.0, lens.cx, 0.0, lens.fy, lens.cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[lens.fx, 0.0, lens.cx, 0.0, 0.0, lens.fy, lens.cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )


def intrinsics_of(message: CameraInfo) -> Intrinsics:
    """The inverse of `camera_info_msg`; raises DataError for an unknown distortion model."""
    model = message.distortion_model or "plumb_bob"
    if model not in DISTORTION_MODELS:
        valid = ", ".join(DISTORTION_MODELS)
        raise DataError(f"camera_info of {message.header.frame_id}: distortion model '{model}', expected one of {valid}")
    fx, cx, fy, cy = message.k[0], message.k[2], message.k[4], message.k[5]
    return Intrinsics(message.width, message.height, fx, fy, cx, cy, tuple(message.d) or (0.0,) * 5, model)


def metadata_msg(frame: Frame) -> vla.FrameMetadata:
    return vla.FrameMetadata(header=header_msg(frame.stamp_ns, frame.frame_id), frame_number=frame.number)


def joint_state_msg(state: RobotState) -> JointState:
    """The arm's joints, then the opening between the fingers (m) as `gripper` where there is one."""
    names, position, velocity, effort = list(state.joint_names), state.position, state.velocity, state.effort
    if state.gripper_width_m is not None:
        names.append(GRIPPER_JOINT)
        position, velocity, effort = np.append(position, state.gripper_width_m), np.append(velocity, 0.0), np.append(effort, 0.0)
    header = header_msg(state.stamp_ns, BASE_FRAME)
    return JointState(header=header, name=names, position=_doubles(position), velocity=_doubles(velocity), effort=_doubles(effort))


def robot_state_of(message: JointState) -> RobotState:
    """The inverse of `joint_state_msg`. Velocity and effort may be missing (0 then); raises DataError for wrong lengths and NaN."""
    names = tuple(message.name)
    values = {key: np.array(getattr(message, key)) for key in ("position", "velocity", "effort")}
    for key, value in values.items():
        if key != "position" and not value.size:
            value = values[key] = np.zeros(len(names))
        if value.shape != (len(names),):
            raise DataError(f"joint state: {value.size} values of {key} for {len(names)} joints: {', '.join(names)}")
        if not np.isfinite(value).all():
            raise DataError(f"joint state: {key} of {names[int(np.argmin(np.isfinite(value)))]} is not finite")
    arm = [i for i, name in enumerate(names) if name != GRIPPER_JOINT]
    width_m = float(values["position"][names.index(GRIPPER_JOINT)]) if GRIPPER_JOINT in names else None
    joints = tuple(names[i] for i in arm)
    return RobotState(stamp_ns(message.header.stamp), joints, *(values[key][arm] for key in ("position", "velocity", "effort")), width_m)


def chunk_msg(chunk: ActionChunk) -> vla.ActionChunk:
    return vla.ActionChunk(
        header=header_msg(chunk.stamp_ns, BASE_FRAME),
        sequence=chunk.sequence,
        dt_s=float(chunk.dt_s),
        horizon=chunk.data.shape[0],
        channels=list(chunk.channels),
        data=_doubles(chunk.data),
        policy=chunk.policy,
        embodiment=chunk.embodiment,
        inference_s=float(chunk.inference_s),
    )


def chunk_of(message: vla.ActionChunk) -> ActionChunk:
    """Raises DataError when the data is not horizon x channels, not finite, or dt_s is not > 0."""
    rows, columns = message.horizon, len(message.channels)
    if len(message.data) != rows * columns:
        raise DataError(f"action chunk {message.sequence}: {len(message.data)} values, expected {rows} x {columns}")
    data = np.array(message.data).reshape(rows, columns)
    source = {"policy": message.policy, "embodiment": message.embodiment, "inference_s": message.inference_s}
    return ActionChunk(stamp_ns(message.header.stamp), message.dt_s, tuple(message.channels), data, message.sequence, **source)


def command_msg(action: Action, mode: int | None = None, reason: str = "") -> vla.RobotCommand:
    """`mode` is one of RobotCommand.MODE_*; None: what the channels say (raises DataError for names without a meaning)."""
    return vla.RobotCommand(
        header=header_msg(action.stamp_ns, BASE_FRAME),
        mode=MODES[mode_of(action.channels)] if mode is None else mode,
        channels=list(action.channels),
        data=_doubles(action.data),
        source=action.source,
        sequence=action.sequence,
        reason=reason,
    )


def hold_msg(stamp_ns: int, source: str, sequence: int, reason: str) -> vla.RobotCommand:
    """The command to hold the measured position, and why."""
    header = header_msg(stamp_ns, BASE_FRAME)
    return vla.RobotCommand(header=header, mode=vla.RobotCommand.MODE_HOLD, source=source, sequence=sequence, reason=reason)


def action_of(message: vla.RobotCommand) -> Action:
    """Raises DataError for an unknown mode, for MODE_HOLD (it has no targets), for channels of another mode, wrong lengths and NaN."""
    mode = next((name for name, number in MODES.items() if number == message.mode), None)
    if mode is None:
        valid = ", ".join(f"{number} ({name})" for name, number in MODES.items())
        raise DataError(f"command {message.sequence}: mode {message.mode}; valid: {valid}", "mode")
    if mode == "hold":
        raise DataError(f"command {message.sequence}: a hold has no targets to convert")
    action = Action(tuple(message.channels), np.array(message.data), stamp_ns(message.header.stamp), message.source, message.sequence)
    found = mode_of(action.channels)
    if found != mode:
        raise DataError(f"command {message.sequence}: mode {mode}, but channels for {found}: {', '.join(action.channels)}", "channels")
    return action


def proprioception_msg(state: Proprioception, embodiment: str, ages_s: Mapping[str, float]) -> vla.Proprioception:
    """`ages_s`: robot -> age of its measurement, s."""
    return vla.Proprioception(
        header=header_msg(state.stamp_ns, BASE_FRAME),
        embodiment=embodiment,
        channels=list(state.channels),
        data=_doubles(state.data),
        robots=list(ages_s),
        age_s=_doubles(list(ages_s.values())),
    )


def proprioception_of(message: vla.Proprioception) -> Proprioception:
    """Raises DataError for wrong lengths, doubled names and NaN."""
    return Proprioception(stamp_ns(message.header.stamp), tuple(message.channels), np.array(message.data))


def plan_msg(plan: SkillPlan | None) -> vla.SkillPlan:
    """None, from a policy without a plan, becomes an empty message."""
    if plan is None:
        return vla.SkillPlan()
    return vla.SkillPlan(stamp=stamp_msg(plan.stamp_ns), task_chain=list(plan.task_chain), step=plan.step, skill=plan.skill, text=plan.text)


def plan_of(message: vla.SkillPlan) -> SkillPlan | None:
    """An empty message becomes None; raises DataError when the step lies outside the chain."""
    if not message.task_chain and not message.skill:
        return None
    if message.step >= len(message.task_chain):
        raise DataError(f"skill plan: step {message.step} of a chain of {len(message.task_chain)}")
    return SkillPlan(stamp_ns(message.stamp), tuple(message.task_chain), message.step, message.skill, message.text)


@dataclass(frozen=True)
class RobotReport:
    """What a robot node says about itself: `state` is one of ROBOT_STATES' names, `rejected` counts commands by reason."""

    stamp_ns: int
    state: str
    source: str
    reason: str = ""
    detail: str = ""
    rejected: Mapping[str, int] = field(default_factory=dict)


def status_msg(
    stamp_ns: int, state: int, source: str, reason: str, detail: str, accepted: int, rejected: Mapping[str, int]
) -> vla.RobotStatus:
    """`state` is one of RobotStatus.STATE_*; `rejected` counts commands by reason."""
    return vla.RobotStatus(
        stamp=stamp_msg(stamp_ns),
        state=int(state),
        source=source,
        reason=reason,
        detail=detail,
        accepted=accepted,
        rejected_names=list(rejected),
        rejected_counts=list(rejected.values()),
    )


def report_of(message: vla.RobotStatus) -> RobotReport:
    """Raises DataError for an unknown state or for rejections without counts."""
    if message.state not in ROBOT_STATES:
        raise DataError(f"robot status: state {message.state}; valid: {', '.join(f'{n} ({name})' for n, name in ROBOT_STATES.items())}")
    if len(message.rejected_names) != len(message.rejected_counts):
        raise DataError(f"robot status: {len(message.rejected_names)} names of rejections, {len(message.rejected_counts)} counts")
    rejected = dict(zip(message.rejected_names, message.rejected_counts, strict=True))
    return RobotReport(stamp_ns(message.stamp), ROBOT_STATES[message.state], message.source, message.reason, message.detail, rejected)


def _doubles(values: np.ndarray | Sequence[float]) -> array:
    """An array.array is taken over as it is; a list would be checked value by value."""
    return array("d", np.ascontiguousarray(values, dtype=np.float64).tobytes())
