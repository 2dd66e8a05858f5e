"""Stretches of a file that belong to something, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from converter.checkpoint.safetensors import Shard

#: Bytes that are read at a time.
_CHUNK: Final = 16 << 20


def first_other_byte(shard: Shard, start: int, stop: int, taken: Iterable[tuple[int, int]]) -> int | None:
    """The first byte of a file from ``start`` to ``stop`` that is not 0 and lies in none of the stretches
    ``taken``, each from one byte to another. ``None`` without one."""
    for begin, end in sorted([*taken, (stop, stop)]):
        for place in range(start, min(begin, stop), _CHUNK):
            data = shard.read(place, min(_CHUNK, min(begin, stop) - place), "what is between its parts")
            if data.strip(b"\0"):
                return place + int(np.flatnonzero(np.frombuffer(data, np.uint8))[0])
        start = max(start, end)
    return None
