"""What a client of `vla serve` sends and gets: see docs/policies.md, "On the wire"."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from vla_ros.core.errors import DataError, did_you_mean
from vla_ros.core.types import Frame, Inference, Observation, PolicySpec, Prefix, Proprioception

PROTOCOL = "vla_ros/1"
STATE, PROMPT, ACTIONS, STAMP = "state", "prompt", "actions", "stamp_ns"
PREFIX, PREFIX_WEIGHTS = "prefix", "prefix_weights"


def metadata_of(spec: PolicySpec) -> dict[str, object]:
    """Returns what the server says first."""
    return {
        "protocol": PROTOCOL,
        "system": spec.name,
        "embodiment": spec.embodiment,
        "cameras": list(spec.cameras),
        "state": list(spec.state),
        "channels": list(spec.channels),
        "horizon": int(spec.horizon),
        "dt_s": float(spec.dt_s),
        "reads": [PREFIX],
    }


def observation_of(message: object, spec: PolicySpec, number: int) -> Observation:
    """Reads a client's message.

    Args:
        message: a mapping: for each camera of `spec` uint8 [H, W, 3] under its name, `state` [S] in the order of `spec.state`
            (left out when the policy reads none), `prompt`, and `stamp_ns` if the client knows the instant. With real-time chunking
            `prefix` [P, D] in the order of `spec.channels` and `prefix_weights` [P], see `core.types.Prefix`.
        spec: of the policy that will see it.
        number: of the message, for the frames.

    Raises:
        DataError: a key is missing, unknown, or holds something else.
    """
    if not isinstance(message, Mapping):
        raise DataError(f"an observation is a mapping, this is a {type(message).__name__}", "message")
    needed = {*spec.cameras, PROMPT, *([STATE] if spec.state else [])}
    known = {*needed, STATE, STAMP, PREFIX, PREFIX_WEIGHTS}
    for key in message:
        if key not in known:
            text = key if isinstance(key, str) else repr(key)
            raise DataError(f"unknown key {text[:60]!r}; {did_you_mean(text[:60], known)}", "message")
    if missing := sorted(needed - set(message)):
        raise DataError(f"the observation lacks {', '.join(missing)}; expected {', '.join(sorted(known))}", "message")
    stamp_ns = message.get(STAMP, None)
    stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
    if type(stamp_ns) is not int or not 0 <= stamp_ns < 2**63:
        raise DataError(f"{STAMP} = {stamp_ns!r:.60}, expected whole ns since the epoch", "message")
    if not isinstance(message[PROMPT], str):
        raise DataError(f"{PROMPT} is a {type(message[PROMPT]).__name__}, expected text", "message")
    frames = {name: Frame(stamp_ns, _image(name, message[name]), number, f"{name}_color_optical_frame") for name in spec.cameras}
    state = _state(message.get(STATE), spec) if spec.state else np.zeros(0)
    return Observation(stamp_ns, frames, Proprioception(stamp_ns, spec.state, state), message[PROMPT], _prefix(message, stamp_ns, spec))


def answer_of(inference: Inference, infer_s: float) -> dict[str, object]:
    """Returns what the client gets."""
    chunk, plan = inference.chunk, inference.plan
    answer: dict[str, object] = {ACTIONS: chunk.data, STAMP: chunk.stamp_ns, "server_timing": {"infer_ms": infer_s * 1e3}}
    if plan is not None:
        answer["plan"] = {"task_chain": list(plan.task_chain), "step": plan.step, "skill": plan.skill, "text": plan.text}
    return answer


def _image(name: str, value: object) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise DataError(f"{name} is a {type(value).__name__}, expected an image: an array uint8 [H, W, 3] RGB", "message")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or value.size == 0:
        raise DataError(f"{name} is {value.dtype} {list(value.shape)}, expected an image: uint8 [H, W, 3] RGB", "message")
    return value


def _state(value: object, spec: PolicySpec) -> np.ndarray:
    names = ", ".join(spec.state)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{STATE} is {kind}, expected an array of {len(spec.state)} numbers: {names}", "message")
    if value.shape != (len(spec.state),):
        raise DataError(f"{STATE} has shape {list(value.shape)}, expected [{len(spec.state)}]: {names}", "message")
    return value


def _prefix(message: Mapping[str, object], stamp_ns: int, spec: PolicySpec) -> Prefix | None:
    if PREFIX not in message and PREFIX_WEIGHTS not in message:
        return None
    rows, weights = (message.get(key) for key in (PREFIX, PREFIX_WEIGHTS))
    for key, value, axes in ((PREFIX, rows, 2), (PREFIX_WEIGHTS, weights, 1)):
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != axes or not np.isfinite(value).all():
            raise DataError(f"{key} is no array of finite float numbers {'[P, D]' if axes == 2 else '[P]'}", "message")
    if rows.shape != (len(weights), len(spec.channels)) or not 1 <= len(rows) <= spec.horizon:
        expected = f"up to {spec.horizon} rows of {len(spec.channels)}: {', '.join(spec.channels)}"
        raise DataError(f"{PREFIX} {list(rows.shape)} with {len(weights)} {PREFIX_WEIGHTS}, expected {expected}", "message")
    if weights.min() < 0 or weights.max() > 1:
        raise DataError(f"{PREFIX_WEIGHTS} of {weights.min():g} .. {weights.max():g}, expected 0 .. 1", "message")
    return Prefix(stamp_ns, spec.dt_s, spec.channels, rows.astype(np.float64), weights.astype(np.float64))
