"""openpi's messages: msgpack, arrays as `{__ndarray__, data, dtype, shape}`. Reading builds plain data and numeric arrays, nothing else."""

from __future__ import annotations

import math
import re

import numpy as np

from vla_ros.core.errors import DataError, NotInstalled

try:
    import msgpack
except ImportError as error:
    raise NotInstalled("policies over a network need msgpack: pip install msgpack websockets (or `make setup`)") from error

# Only these can be made from bytes without running code or reading foreign memory: no objects, no structures, no dates.
_DTYPE = re.compile(r"[<>|=]?([?b]1?|[iuf][1248]|[iu]1)")
_AXES = 8
_SHOWN = 60


def pack(value: object) -> bytes:
    """Returns a message. Arrays and numpy numbers of the kinds bool, int, float travel as openpi writes them.

    Raises:
        DataError: something that has no form on the wire.
    """
    try:
        return msgpack.packb(value, default=_to_wire)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"this cannot be sent: {error}", "message") from None


def unpack(data: bytes) -> object:
    """Reads a message; arrays are read-only views of it.

    Raises:
        DataError: not msgpack, an array of another kind than bool, int or float, or whose data does not fill its shape.
    """
    try:
        return msgpack.unpackb(data, object_hook=_from_wire)
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise DataError(f"{len(data)} bytes are not a msgpack message: {text[:_SHOWN]}", "message") from None


def _to_wire(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf":
            raise DataError(f"dtype {value.dtype} cannot be sent; bool, int and float can", "message")
        if isinstance(value, np.ndarray):
            # one copy less than tobytes: msgpack copies the view itself
            flat = memoryview(np.ascontiguousarray(value)).cast("B") if value.size else b""
            return {b"__ndarray__": True, b"data": flat, b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} has no form on the wire")


def _from_wire(item: dict) -> object:
    for mark, read in ((b"__ndarray__", _array), (b"__npgeneric__", _number)):
        if mark in item or mark.decode() in item:
            return read({key.decode() if isinstance(key, bytes) else key: value for key, value in item.items()})
    return item


def _array(item: dict) -> np.ndarray:
    dtype, shape, data = _dtype(item.get("dtype")), item.get("shape"), item.get("data")
    if not isinstance(shape, list) or len(shape) > _AXES or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise DataError(f"array of shape {_shown(shape)}, expected a list of up to {_AXES} sizes", "message")
    needed = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != needed:
        there = f"{len(data)} bytes" if isinstance(data, bytes) else f"data of type {type(data).__name__}"
        raise DataError(f"array {dtype} {shape} needs {needed} bytes, the message holds {there}", "message")
    return np.frombuffer(data, dtype).reshape(shape)


def _number(item: dict) -> np.generic:
    dtype, value = _dtype(item.get("dtype")), item.get("data")
    if not isinstance(value, bool | int | float):
        raise DataError(f"numpy number from {_shown(value)}, expected bool, int or float", "message")
    try:
        return np.array(value).astype(dtype)[()]
    except (OverflowError, ValueError, TypeError) as error:
        raise DataError(f"numpy number {_shown(value)} as {dtype}: {error}", "message") from None


def _dtype(name: object) -> np.dtype:
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise DataError(f"array of dtype {_shown(name)}; bool, int and float of 1, 2, 4 or 8 bytes are read", "message")
    try:
        return np.dtype(text)
    except TypeError:
        raise DataError(f"array of dtype {_shown(name)}: numpy knows no such number", "message") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
