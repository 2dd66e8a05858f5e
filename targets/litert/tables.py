"""Flatbuffers of strangers: tables, lists and texts, of which nothing is believed.

A flatbuffer begins with the place of its root table (uint32). A table begins with the distance back to a
list of its fields' places (int32). That list has its own length and the table's in bytes, then two bytes a
field (https://flatbuffers.dev/internals/). Everything is little-endian. Every place is checked against the
bytes at hand, and the number of parts that are read is bounded: a flatbuffer may point to one part from many
others.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from converter.errors import CheckpointError

_TEXT_BYTES: Final = 1 << 12
#: Bytes of a text that count as one part.
_PART: Final = 64


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that are overwritten in a copy of a flatbuffer."""

    place: int
    content: bytes


class Flatbuffer:
    """The bytes of a flatbuffer; ``damaged`` makes the error that says what is wrong with it.

    Reading it raises that error for places outside the bytes, and as soon as more than ``most_parts`` items
    of lists have been read. With ``covered`` it remembers which bytes were read.
    """

    def __init__(
        self,
        data: bytes,
        damaged: Callable[[str], CheckpointError],
        most_parts: int,
        *,
        covered: bool = False,
    ) -> None:
        self.data, self.damaged = data, damaged
        self._room = self._most = most_parts
        self._covered = bytearray(len(data)) if covered else None

    def cover(self, place: int, count: int) -> None:
        """Remember ``count`` bytes at ``place``, as far as they are here, as ones that belong to
        something."""
        if self._covered is not None:
            end = min(place + count, len(self._covered))
            if place < end:
                self._covered[place:end] = b"\1" * (end - place)

    def uncovered(self) -> int | None:
        """The first byte that belongs to nothing and is not 0, ``None`` without one."""
        if self._covered is None:
            return None
        import numpy as np

        spare = np.frombuffer(self.data, np.uint8).astype(bool) & ~np.frombuffer(self._covered, bool)
        place = int(spare.argmax()) if spare.size else 0
        return place if spare.size and spare[place] else None

    def root(self) -> Table:
        """The table in which all others are."""
        return Table(self, self.follow(0))

    def number(self, place: int, format: str) -> int:
        """The integer at byte ``place``, of a format of ``struct``."""
        size = struct.calcsize(format)
        self.check(place, size)
        self.cover(place, size)
        value: int = struct.unpack_from(format, self.data, place)[0]
        return value

    def follow(self, place: int) -> int:
        """Where the distance at byte ``place`` leads."""
        return place + self.number(place, "<I")

    def check(self, place: int, size: int) -> None:
        """Refuse ``size`` bytes at ``place`` that are not all there."""
        if place < 0 or size < 0 or place + size > len(self.data):
            raise self.damaged(f"it points to byte {place + size} of {len(self.data)}")

    def make_room(self, count: int) -> None:
        """Count ``count`` parts more."""
        self._room -= count
        if self._room < 0:
            raise self.damaged(f"it has more than {self._most} parts")


class Table:
    """A table of a flatbuffer at byte ``place``; a field is named by its number, and may be left out."""

    def __init__(self, buffer: Flatbuffer, place: int) -> None:
        self._buffer, self._place = buffer, place
        self._fields = place - buffer.number(place, "<i")
        self._size = buffer.number(self._fields, "<H")
        buffer.check(self._fields, self._size)
        buffer.number(self._fields + 2, "<H")

    @property
    def place(self) -> int:
        """The byte at which it begins."""
        return self._place

    def number(self, field: int, format: str) -> int:
        """An integer of a format of ``struct``, 0 if it is left out."""
        place = self.where(field)
        return 0 if place is None else self._buffer.number(place, format)

    def fields(self) -> list[int]:
        """Numbers of the fields that are not left out."""
        return [field for field in range((self._size - 4) // 2) if self.where(field) is not None]

    def value(self, field: int, format: str, default: object) -> object:
        """A number of a format of ``struct``, a list of them (``*`` before the format), the count and a
        digest of a list (``#``), or a text (``s``); ``default`` if it is left out."""
        place = self.where(field)
        if place is None:
            return default
        if format == "s":
            return self.text(field)
        if format.startswith("#"):
            width = struct.calcsize(format[1:])
            start, count = self.vector(field, width)
            self._buffer.make_room(count * width // _PART + 1)
            content = self._buffer.data[start : start + count * width]
            return f"{count} numbers, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}" if count else ()
        if format.startswith("*"):
            letter = format[2:]
            width = struct.calcsize(f"<{letter}")
            start, count = self.vector(field, width)
            self._buffer.make_room(count * width // _PART + 1)
            return struct.unpack_from(f"<{count}{letter}", self._buffer.data, start)
        return self._buffer.number(place, format)

    def table(self, field: int) -> Table | None:
        """A table, ``None`` if it is left out."""
        place = self.where(field)
        return None if place is None else Table(self._buffer, self._buffer.follow(place))

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Place and length of a list of items of ``width`` bytes."""
        place = self.where(field)
        if place is None:
            return 0, 0
        place = self._buffer.follow(place)
        count = self._buffer.number(place, "<I")
        self._buffer.check(place + 4, count * width)
        self._buffer.cover(place + 4, count * width)
        return place + 4, count

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a list."""
        place, count = self.vector(field, 4)
        self._buffer.make_room(count)
        for item in range(place, place + 4 * count, 4):
            yield Table(self._buffer, self._buffer.follow(item))

    def integers(self, field: int) -> tuple[int, ...]:
        """A list of int32 numbers."""
        place, count = self.vector(field, 4)
        self._buffer.make_room(count)
        return struct.unpack_from(f"<{count}i", self._buffer.data, place) if count else ()

    def text(self, field: int) -> str:
        """A text, empty if it is left out."""
        place, count = self.vector(field, 1)
        if count > _TEXT_BYTES:
            raise self._buffer.damaged(f"a text of {count} bytes")
        self._buffer.make_room(count // _PART)
        try:
            return self._buffer.data[place : place + count].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._buffer.damaged("a text that is not UTF-8") from error

    def where(self, field: int) -> int | None:
        """The byte at which a field's own number, or the distance to its value, stands; ``None`` if it is
        left out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return None
        offset = self._buffer.number(self._fields + entry, "<H")
        return self._place + offset if offset else None
