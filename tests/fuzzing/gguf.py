"""GGUF: counts, keys, types, arrays and the table of tensors."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from fuzzing import Damage, Files, Format, damages
from fuzzing.safetensors import write_small
from targets.gguf import target
from targets.gguf.metadata import read_contents

_FILE = "model/gguf/model-q4_0.gguf"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass
class _Layout:
    """Where things stand in a header: numbers by what they are, as (place, format), and the stretches of
    entries and of descriptions of tensors."""

    data: bytes
    place: int = 0
    numbers: Mapping[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    parts: list[tuple[int, int]] = field(default_factory=list)

    def number(self, what: str, format: str) -> int:
        self.numbers[what].append((self.place, format))
        (value,) = struct.unpack_from(format, self.data, self.place)
        self.place += struct.calcsize(format)
        found: int = value
        return found

    def string(self, what: str) -> None:
        length = self.number(what, "<Q")
        self.place += length

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string("length of a value")
        elif kind == _ARRAY:
            item, count = self.number("type of items", "<I"), self.number("count of items", "<Q")
            for _ in range(count if item == _STRING else 0):
                self.string("length of an item")
            self.place += 0 if item == _STRING else count * _SIZES[item]
        else:
            self.number("value", {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[_SIZES[kind]])


@lru_cache(1)
def layout(data: bytes) -> _Layout:
    """The layout of a right file."""
    found = _Layout(data, 4)
    found.number("version", "<I")
    tensors, entries = found.number("count of tensors", "<Q"), found.number("count of entries", "<Q")
    for index in range(entries + tensors):
        start = found.place
        found.string("length of a name")
        if index < entries:
            found.value(found.number("type of a value", "<I"))
        else:
            for _ in range(found.number("dimensions", "<I")):
                found.number("size", "<Q")
            found.number("type of a tensor", "<I")
            found.number("offset", "<Q")
        found.parts.append((start, found.place))
    return found


def damage(files: Files, random: Random) -> Damage:
    """The file with another header."""
    data = files[_FILE]
    found = layout(data)
    kind = random.randrange(10)
    if kind == 0:
        return {_FILE: damages.with_bytes(data, random)}
    if kind == 1:
        return {_FILE: damages.with_bytes(data, random, found.place)}
    if kind == 2:
        return {_FILE: _moved(data, found.parts, random)}
    for _ in range(random.choice((1, 1, 2, 4))):
        place, format = random.choice(found.numbers[random.choice(sorted(found.numbers))])
        data = damages.with_number(data, place, format, random)
    return {_FILE: data}


def _moved(data: bytes, parts: Sequence[tuple[int, int]], random: Random) -> bytes:
    """An entry or a tensor twice, gone, or in another's place; in half of the cases the counts say so."""
    (start, stop), (other, end) = random.choice(parts), random.choice(parts)
    kind = random.randrange(3)
    if kind == 0:
        return data[:stop] + data[start:stop] + data[stop:]
    if kind == 1:
        return data[:start] + data[stop:]
    return data[:start] + data[other:end] + data[stop:]


@lru_cache(1)
def _checkpoint(directory: Path) -> Checkpoint:
    return open_checkpoint(directory)


def write(directory: Path) -> None:
    """A small checkpoint and its GGUF."""
    write_small(directory / "checkpoint")
    checkpoint = open_checkpoint(directory / "checkpoint")
    target.write(checkpoint, target.plan(checkpoint, "model", {}), directory / "model")


def read(directory: Path) -> None:
    """The metadata, and every weight."""
    read_contents(directory / _FILE)
    for stored in target.describe(directory / _FILE, _checkpoint(directory / "checkpoint")).values():
        rows = 1
        for size in stored.shape[:-1]:
            rows *= size
        stored.floats(0, rows)


FORMAT = Format("gguf", write, damage, read)
