"""Executors turn overlapping action chunks into the action for an instant.

A chunk lies on the time axis by its observation stamp, so latency is compensated by construction: at `t_ns` it contributes its row
`(t_ns - stamp_ns) / dt`, between two rows the linear interpolation (rotations: the short way round; grippers: the row before).
It is live from its first row's instant to its last row's, both included.
"""

from __future__ import annotations

import inspect

from vla_ros.core.errors import ConfigError, did_you_mean
from vla_ros.core.executors.base import Executor, Figures
from vla_ros.core.executors.ensemble import EnsembleExecutor
from vla_ros.core.executors.rtc import RtcExecutor, prefix_weights
from vla_ros.core.executors.single import ChunkExecutor, FirstExecutor

__all__ = ["EXECUTORS", "Executor", "Figures", "RtcExecutor", "make_executor", "parse_executor", "prefix_weights"]

EXECUTORS: dict[str, type[Executor]] = {
    "chunk": ChunkExecutor,
    "first": FirstExecutor,
    "ensemble": EnsembleExecutor,
    "rtc": RtcExecutor,
}


def make_executor(name: str, **options: object) -> Executor:
    """Returns a new executor.

    Args:
        name: "chunk", "first", "ensemble" or "rtc".
        options: chunk: `execute_steps`; ensemble: `weighting`, `m`, `alpha`, `max_age_s`; rtc: `execution_horizon`.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
    """
    if not isinstance(name, str) or name not in EXECUTORS:
        raise ConfigError(f"executor '{name}' is unknown; {did_you_mean(str(name), EXECUTORS)}")
    known = [option for option in inspect.signature(EXECUTORS[name].__init__).parameters if option != "self"]
    for option in options:
        if option not in known:
            raise ConfigError(f"executor {name}: option '{option}' is unknown; {did_you_mean(option, known)}")
    return EXECUTORS[name](**options)


def parse_executor(text: str) -> dict[str, object]:
    """Reads an executor from one word of a command line or a ROS parameter.

    `"ensemble:weighting=age,m=2"` -> {"name": "ensemble", "weighting": "age", "m": 2}, ready for `make_executor(**it)`.

    Raises:
        ConfigError: not `name` or `name:option=value,...`, or `make_executor` refuses it.
    """
    name, _, rest = text.partition(":")
    parsed: dict[str, object] = {"name": name}
    for pair in filter(None, rest.split(",")):
        option, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"executor '{text}': '{pair}' is not option=value; example: ensemble:weighting=age,m=2")
        parsed[option.strip()] = _value(value.strip())
    make_executor(**parsed)
    return parsed


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
