"""Damage that any format may take: numbers at the edges of their types, cut and moved bytes, hostile JSON."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

#: Numbers around which a reader's arithmetic may break.
EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    4096,
    *(1 << power for power in range(15, 65)),
)
#: Texts that may break a message, a path or an encoding.
TEXTS = ("", "\x1b[2J", "a\nb", "\u202e", "../../x", "/etc/passwd", "\0", "x" * 5000, "%s{0}", "model", "▁")
_DEEP, _DIGITS, _TWICE = "@deep@", "@digits@", "@twice@"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")),
    *(2**31 - 1, 2**31, 2**48, 2**53, 2**63, 2**64, -(2**63), _DEEP, _DIGITS),
    *([], {}, [[]], [None], [0, 0], {"": 0}, {"a": {"b": []}}, "\ud800", *TEXTS),
)


def integer(random: Random, bits: int = 64) -> int:
    """An unsigned number of ``bits``, most often near an edge."""
    value = (
        random.choice(EDGES) + random.choice((-1, 0, 0, 1))
        if random.random() < 0.8
        else random.getrandbits(bits)
    )
    return value % (1 << bits)


def with_number(data: bytes, place: int, format: str, random: Random) -> bytes:
    """``data`` with another number of a format of ``struct`` at ``place``."""
    size = struct.calcsize(format)
    old = int.from_bytes(data[place : place + size], "little")
    near = (old + random.choice((-1, 1, 32, -32))) % (1 << 8 * size)
    value = near if random.random() < 0.2 else integer(random, 8 * size)
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


def with_bytes(data: bytes, random: Random, stop: int | None = None) -> bytes:
    """``data`` with damage that knows no structure, before byte ``stop``."""
    stop = min(len(data), stop or len(data))
    first, last = sorted(random.randrange(stop + 1) for _ in range(2))
    last = min(last, first + random.choice((1, 4, 64, 4096)))
    kind = random.randrange(6)
    if kind == 0:
        return data[:first]
    if kind == 1:
        return data[:first] + random.randbytes(random.choice((1, 4, 8, 100))) + data[first:]
    if kind == 2:
        return data[:first] + data[last:]
    if kind == 3:
        return data[:last] + data[first:last] * random.choice((1, 2, 100)) + data[last:]
    if kind == 4:
        return data[:first] + bytes([random.choice((0, 255))]) * (last - first) + data[last:]
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 16))):
        if stop:
            changed[random.randrange(stop)] = random.randrange(256)
    return bytes(changed)


def with_json(data: bytes, random: Random) -> bytes:
    """A JSON document with other values, keys or text."""
    if random.random() < 0.2:
        return with_bytes(data, random)
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        _change(document, random)
    return encoded(document, random)


def encoded(document: Any, random: Random) -> bytes:
    """JSON, in which the stand-ins for what Python's writer cannot spell become it."""
    if random.random() < 0.02:
        document = random.choice(_VALUES)
    text = json.dumps(document).replace(f'{_TWICE}":', '":')
    depth = random.choice((10, 500, 100_000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    return text.replace(f'"{_DIGITS}"', "9" * random.choice((30, 400, 10_000))).encode()


def value(random: Random) -> Any:
    """A value that a reader does not expect."""
    return random.choice(_VALUES) if random.random() < 0.8 else integer(random) * random.choice((1, -1))


def _change(document: Any, random: Random) -> None:
    """One change somewhere in a document, at the top as likely as deep."""
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = random.choice(keys)
        if not isinstance(place[key], dict | list) or random.random() < 0.3:
            break
        place = place[key]
    kind = random.randrange(8)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[key] = place[random.choice(keys)]
    elif kind == 2 and isinstance(place, dict):
        place[f"{key}{_TWICE}"] = value(random)
    elif kind == 3 and isinstance(place, dict):
        place[random.choice((*TEXTS, key + "x"))] = place.pop(key)
    elif kind == 3:
        place.insert(key, value(random))
    else:
        place[key] = value(random)
