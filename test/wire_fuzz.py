"""Messages gone wrong, from a seed: broken bytes, broken structure, and what an attacker would send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np

_NAMES = (b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape")
_DTYPES = (b"|O", b"|O8", b"<M8[ns]", b"|V16", b"<c16", b"<U9", b"f8,i4", b"(99999,99999)f8", b"", b"<f3", b"object", 7, None)
_VALUES = (None, True, -1, 2**63, 0.5, float("nan"), "", "stay", b"", b"\0" * 48, [], [[]], {}, {b"a": {}}, -(2**60), [2**31] * 3)


def mutations(good: bytes, random: np.random.Generator, count: int, owned: Path) -> Iterator[bytes]:
    """Yields `count` mutations of the message `good`. If any of them is executed, the file `owned` appears."""
    code = f"c__builtin__\nopen\n(S'{owned}'\nS'w'\ntR.".encode()  # what pickle would obey
    kinds = (_flipped, _cut, _inserted, _restructured, _restructured, lambda data, random: _attack(random, code))
    for number in range(count):
        yield kinds[number % len(kinds)](good, random)


def _flipped(data: bytes, random: np.random.Generator) -> bytes:
    """Some bytes, most of them among the first, where the structure is."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 8)):
        changed[random.integers(len(data)) if random.random() < 0.3 else random.integers(min(120, len(data)))] = random.integers(256)
    return bytes(changed)


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data))]


def _inserted(data: bytes, random: np.random.Generator) -> bytes:
    place = random.integers(len(data))
    return data[:place] + random.bytes(random.integers(1, 40)) + data[place:]


def _restructured(data: bytes, random: np.random.Generator) -> bytes:
    """Valid msgpack that says something else."""
    content = msgpack.unpackb(data, strict_map_key=False)
    key = list(content)[random.integers(len(content))]
    choice = random.integers(5)
    if choice == 0:
        del content[key]
    elif choice == 1:
        content[key] = _VALUES[random.integers(len(_VALUES))]
    elif choice == 2 and isinstance(content[key], dict) and content[key]:
        inner = list(content[key])[random.integers(len(content[key]))]
        content[key][inner] = (*_VALUES, *_DTYPES)[random.integers(len(_VALUES) + len(_DTYPES))]
    elif choice == 3 and isinstance(content[key], dict):
        content[key].pop(_NAMES[random.integers(len(_NAMES))], None)
    else:
        content[f"{key}{random.integers(99)}"] = content.pop(key)
    return msgpack.packb(content)


def _attack(random: np.random.Generator, code: bytes) -> bytes:
    array = {b"__ndarray__": True, b"data": code, b"dtype": _DTYPES[random.integers(len(_DTYPES))], b"shape": [1]}
    attacks = (
        code,
        msgpack.packb({"prompt": array, "state": array}),
        msgpack.packb(msgpack.ExtType(int(random.integers(128)), code)),
        b"\x91" * 5000,  # nested deeper than a stack
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\xc6\xff\xff\xff\xff" + code,  # 4 GB of bytes
        msgpack.packb({"__reduce__": ["os.system", f"touch {code!r}"]}),
        msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": b"<f8", b"shape": [0] * 40}),
    )
    return attacks[random.integers(len(attacks))]
