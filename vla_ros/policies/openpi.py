"""A policy behind an openpi server: `checkpoint: openpi://127.0.0.1:8000`. `vla serve` is such a server, and needs no options."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from vla_ros.core.embodiment import Embodiment
from vla_ros.core.errors import DataError, DeviceError, PolicyError
from vla_ros.core.types import ActionChunk, Inference, Observation, PolicySpec, SkillPlan
from vla_ros.policies.foreign import ActionColumns, StateVector, frame_of, letterbox, option_cameras, option_names, option_number
from vla_ros.policies.serving.connection import Connection
from vla_ros.policies.serving.messages import ACTIONS, PREFIX, PREFIX_WEIGHTS, PROMPT, PROTOCOL, STAMP, STATE
from vla_ros.policies.serving.wire import pack

# The keys of openpi's DROID policies, for servers that do not say theirs.
_EXTERIOR, _WRIST = "observation/exterior_image_1_left", "observation/wrist_image_left"
_JOINTS, _GRIPPER = "observation/joint_position", "observation/gripper_position"
_OPENPI_PX = {"width": 224, "height": 224}
_ROWS = 50  # of openpi's usual chunk
_STAMP_SLACK_NS = 1_000_000_000


class OpenPi:
    """Implements `core.interfaces.Policy`; a new connection is tried with each inference while there is none.

    Args:
        embodiment: the robot that it drives.
        server: `host:port`, `//host:port`, or a whole `ws://` or `wss://` address.
        channels: a channel for each column of the server's actions, "skip" for one that drives nothing.
        actions: "absolute" or "relative" (see `foreign.ActionColumns`).
        dt_s: time between the rows.
        cameras: {key on the wire: camera}.
        image: {"width", "height"} in px that every picture is letterboxed to, or "full".
        state: {key on the wire: list of channels}.
        prompt, reply: keys of the instruction and of the actions.
        horizon: rows of a chunk as far as known; what the server sends counts.
        timeout_s: longest wait for an answer, connecting included.
        token: sent as `Authorization: Bearer`; openpi's own `Api-Key` form with `token_scheme`.

    `vla serve` tells all of them but the last two; of a foreign server `channels`, `actions` and `dt_s` must be given.

    Raises:
        PolicyError: options that are wrong or missing, or a server for another robot.
        DeviceError: the server is needed to know what it does, and is not there.
    """

    def __init__(
        self, embodiment: Embodiment, server: str, *, channels: object = None, actions: object = None, dt_s: object = None,
        cameras: object = None, image: object = None, state: object = None, prompt: str = PROMPT, reply: str = ACTIONS,
        horizon: object = None, timeout_s: object = 2.0, token: str = "", token_scheme: str = "Bearer",
    ) -> None:  # fmt: skip
        timeout_s = option_number("timeout_s", timeout_s, 0.01, 600)
        self._connection = Connection(server, timeout_s, f"{token_scheme} {token}" if token else "")
        told = {} if None not in (channels, actions, dt_s) else self._ask_server(embodiment)
        own = told.get("protocol") == PROTOCOL
        self._columns = ActionColumns(
            option_names("channels", told["channels"] if channels is None else channels), actions or "absolute", embodiment
        )
        names = {name: name for name in told["cameras"]} if own else _droid_cameras(embodiment)
        self._cameras = option_cameras(names if cameras is None else cameras, embodiment)
        self._image = _size(("full" if own else _OPENPI_PX) if image is None else image)
        if state is None:
            state = ({STATE: told["state"]} if told["state"] else {}) if own else _droid_state(embodiment)
        self._state = _states(state, embodiment)
        self._prompt, self._reply, self._own = str(prompt), str(reply), own
        overruled = any(option is not None for option in (channels, actions, dt_s))
        self._continues = own and not overruled and PREFIX in told["reads"]
        needs = [name for vector in self._state.values() for name in vector.needs] + list(self._columns.needs)
        rows = int(option_number("horizon", told.get("horizon", _ROWS) if horizon is None else horizon, 1, 1000))
        period_s = option_number("dt_s", told["dt_s"] if dt_s is None else dt_s, 0.001, 10)
        name = f"{told['system']} at {self._connection.address}" if own else f"openpi at {self._connection.address}"
        used = tuple(dict.fromkeys(self._cameras.values()))
        self.spec = PolicySpec(name, embodiment.name, used, tuple(dict.fromkeys(needs)), self._columns.channels, rows, period_s)
        self._sequence = 0

    def reset(self) -> None:
        """Counts chunks from 0. `vla serve` begins a new history with a new connection, other servers know no reset."""
        self._sequence = 0
        if self._own:
            self._connection.close()

    def infer(self, observation: Observation) -> Inference:
        """Returns the server's rows as absolute targets, stamped with the observation's capture time.

        Raises:
            PolicyError: the server is gone, slow, reports an error or sends something else than numbers [T, D]; the next call
                connects anew.
        """
        began_s = time.perf_counter()
        try:
            answer = self._connection.ask(pack(self._message(observation)))
            rows = self._columns.rows(answer.get(self._reply), observation.proprioception)
            stamp_ns = _stamp(answer, observation.stamp_ns) if self._own else observation.stamp_ns
            plan = _plan(answer.get("plan"), stamp_ns) if self._own else None
        except (DataError, PolicyError) as error:
            raise PolicyError(f"{self.spec.name}: {error}", error.reason) from None
        spec, sequence = self.spec, self._sequence
        self._sequence += 1
        chunk = ActionChunk(
            stamp_ns, spec.dt_s, spec.channels, rows, sequence, spec.name, spec.embodiment, time.perf_counter() - began_s, _timing(answer)
        )
        return Inference(chunk, plan)

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        self._connection.close()

    def _message(self, observation: Observation) -> dict[str, object]:
        message: dict[str, object] = {self._prompt: observation.instruction}
        for key, camera in self._cameras.items():
            image = frame_of(observation, camera).image
            message[key] = letterbox(image, *self._image) if self._image else image
        for key, vector in self._state.items():
            message[key] = vector.of(observation.proprioception)
        if self._own:
            message[STAMP] = observation.stamp_ns
        if self._continues and (prefix := observation.prefix) is not None:
            if prefix.channels != self.spec.channels or abs(prefix.dt_s - self.spec.dt_s) > 1e-9:
                raise PolicyError(f"a prefix every {prefix.dt_s:g} s of {', '.join(prefix.channels)} does not continue these chunks")
            message |= {PREFIX: prefix.data, PREFIX_WEIGHTS: prefix.weights}
        return message

    def _ask_server(self, embodiment: Embodiment) -> Mapping[str, object]:
        """Returns the metadata of a `vla serve`. Raises DeviceError without a server, PolicyError for another kind or robot."""
        try:
            told = self._connection.metadata()
        except PolicyError as error:
            fix = "start it with `vla serve`, or give policy.options channels, actions and dt_s"
            raise DeviceError(f"{self._connection.address}: {error}; {fix}") from None
        if told.get("protocol") != PROTOCOL:
            raise PolicyError(
                f"{self._connection.address} does not say what its actions are (protocol {told.get('protocol')!r:.40}, not {PROTOCOL}): "
                "give policy.options channels, actions (absolute or relative) and dt_s"
            )
        wrong = [key for key, kind in _TOLD.items() if not isinstance(told.get(key), kind)]
        wrong += [key for key in _NAMES if not all(isinstance(name, str) for name in told.get(key) or ())]
        if wrong:
            raise PolicyError(f"{self._connection.address}: its metadata lacks {', '.join(wrong)}, or holds something else there")
        if told["embodiment"] != embodiment.name:
            raise PolicyError(f"{self._connection.address} drives embodiment {told['embodiment']!r:.80}, this rig has {embodiment.name!r}")
        self._connection.expect = lambda again: _check_same(again, told)
        return told


_NAMES = ("cameras", "state", "channels", "reads")
_TOLD = {"system": str, "embodiment": str, **dict.fromkeys(_NAMES, list), "horizon": int, "dt_s": int | float}
_SAME = ("protocol", "embodiment", *_NAMES, "dt_s")


def _check_same(told: Mapping[str, object], before: Mapping[str, object]) -> None:
    """A server that came back may run something else by now: its numbers would be taken for what they are not. Raises PolicyError."""
    for key in _SAME:
        if told.get(key) != before[key]:
            raise PolicyError(
                f"it serves another policy than before: {key} is {told.get(key)!r:.200}, was {before[key]!r:.200}; serve the "
                "former one, or start the policy node again"
            )


def _droid_cameras(embodiment: Embodiment) -> dict[str, str]:
    wrist = next((name for name in embodiment.cameras if "wrist" in name), None)
    exterior = next((name for name in embodiment.cameras if name != wrist), None)
    return {key: name for key, name in ((_EXTERIOR, exterior), (_WRIST, wrist)) if name is not None}


def _droid_state(embodiment: Embodiment) -> dict[str, list[str]]:
    """Joint positions and how far the gripper is closed; two arms have no usual keys."""
    if len(embodiment.robots) != 1:
        raise PolicyError(f"policy.options.state is missing: embodiment {embodiment.name} has two arms; give `key: [channels]` lines")
    (robot,) = embodiment.robots.values()
    return {_JOINTS: [f"{joint}.position" for joint in robot.joints]} | ({_GRIPPER: ["gripper.closed"]} if robot.gripper else {})


def _states(value: object, embodiment: Embodiment) -> dict[str, StateVector]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise PolicyError(f"policy.options.state = {value!r}, expected `key of the server: [channels]` lines")
    return {key: StateVector(option_names(f"state.{key}", names), embodiment, f"state.{key}") for key, names in value.items()}


def _size(value: object) -> tuple[int, int] | None:
    if value == "full":
        return None
    if not isinstance(value, Mapping) or set(value) != {"width", "height"}:
        raise PolicyError(f"policy.options.image = {value!r}, expected {{width: 224, height: 224}} or full")
    return tuple(int(option_number(f"image.{key}", value[key], 16, 4096)) for key in ("width", "height"))


def _stamp(answer: Mapping[str, object], observed_ns: int) -> int:
    """The instant of the first row: a policy that looks elsewhere than at the observation says so."""
    stamp_ns = answer.get(STAMP, observed_ns)
    if type(stamp_ns) is not int or abs(stamp_ns - observed_ns) > _STAMP_SLACK_NS:
        raise PolicyError(f"the answer is stamped {stamp_ns!r:.40}, its observation {observed_ns}")
    return stamp_ns


def _plan(value: object, stamp_ns: int) -> SkillPlan | None:
    if value is None:
        return None
    try:
        chain, step, skill, text = value["task_chain"], value["step"], value["skill"], value["text"]
        if not all(isinstance(item, str) for item in (*chain, skill, text)) or type(step) is not int:
            raise TypeError("expected texts and a step")
    except (TypeError, KeyError) as error:
        raise PolicyError(f"the answer's plan is {value!r:.80}: {error!r}") from None
    return SkillPlan(stamp_ns, tuple(chain), step, skill, text)


def _timing(answer: Mapping[str, object]) -> dict[str, float]:
    """What the server says about its time, in ms."""
    timing = answer.get("server_timing")
    if not isinstance(timing, Mapping):
        return {}
    numbers = {str(name): value for name, value in timing.items() if isinstance(value, int | float | np.number)}
    return {f"server_{name}": float(value) for name, value in numbers.items() if np.isfinite(value)}
