"""A GGUF file's metadata and table of tensors, read without its vocabulary and its weights.

The layout is ggml's ``docs/gguf.md``, versions 2 and 3, little-endian. A file is hostile input. Every length
is checked against the bytes that are left. Arrays are skipped or kept as bytes, not built: gguf-py's own
reader builds them, which takes 20 s and 1.2 GB for Gemma's vocabulary.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Final

import gguf

from converter.errors import CheckpointError
from converter.system.untrusted import open_at_once

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_LONGEST_STRING: Final = 1 << 24
_MOST_ENTRIES: Final = 1 << 20
_MOST_DIMENSIONS: Final = 4
#: Most strings in an array, which are skipped one by one; Gemma's vocabulary has half a million merges.
_MOST_STRINGS: Final = 1 << 23
_LARGEST_ALIGNMENT: Final = 1 << 20
#: Most bytes of metadata that are kept; Gemma's vocabulary takes 20 MB.
_LARGEST_KEPT: Final = 1 << 28
#: Bytes in which the strings of an array are looked for at once.
_CHUNK: Final = 1 << 16
_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a GGUF file says about itself."""

    #: Every scalar and string by its key.
    values: Mapping[str, object]
    #: Number of values in this file's tensors.
    parameters: int

    @property
    def architecture(self) -> str:
        """GGUF architecture, such as ``gemma4``."""
        return str(self.values.get("general.architecture", ""))

    @property
    def name(self) -> str | None:
        """The model's name."""
        name = self.values.get("general.name")
        return name if isinstance(name, str) else None

    @property
    def context(self) -> int | None:
        """Context length the model was trained for, in tokens."""
        length = self.values.get(f"{self.architecture}.context_length")
        return length if isinstance(length, int) else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, as stored."""
        template = self.values.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def license(self) -> str | None:
        """The licence, as stored."""
        license = self.values.get("general.license")
        return license if isinstance(license, str) else None

    @property
    def splits(self) -> int:
        """Number of files of the model."""
        count = self.values.get("split.count", 1)
        return count if isinstance(count, int) and count > 0 else 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    name: str
    #: Its GGML type.
    type: gguf.GGMLQuantizationType
    #: With the columns last.
    shape: tuple[int, ...]
    #: Where its data begins in the file.
    offset: int
    #: What its data takes.
    bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything in a GGUF file but its weights. Places and sizes are in bytes."""

    version: int
    #: Keys and their values as the file has them (the number of the type, then the value), in order and as
    #: often as they are there.
    entries: tuple[tuple[str, bytes], ...]
    metadata: Metadata
    tensors: tuple[Tensor, ...]
    #: Where the table of tensors ends.
    table_end: int
    #: Where the first tensor's data begin.
    data: int
    #: The file's size.
    size: int


def read_metadata(path: Path) -> Metadata:
    """The metadata of a GGUF file; raises ``CheckpointError`` for a file that is none or is damaged."""
    return read_contents(path)[0]


def read_contents(path: Path) -> tuple[Metadata, tuple[Tensor, ...]]:
    """The metadata of a GGUF file and its tensors in order; raises ``CheckpointError`` for a file that is
    none, is damaged or ends before its last tensor."""
    contents = _read(path, keep=False)
    return contents.metadata, contents.tensors


def read_entries(path: Path) -> Contents:
    """As ``read_contents``, with every value as it stands in the file, arrays too, up to a bounded size."""
    return _read(path, keep=True)


def _read(path: Path, keep: bool) -> Contents:
    try:
        with open(path, "rb", opener=open_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: is not a regular file")
            return _Reader(path, stream, status.st_size, keep).contents()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def decoded(value: bytes, index: int | None = None) -> object:
    """An entry's value, of an array the item at ``index``; an array without ``index``, and an item that it
    does not have, are told by a text."""
    kind = int.from_bytes(value[:4], "little")
    if kind != _ARRAY:
        return _decoded_item(kind, value, 4)
    item, count = int.from_bytes(value[4:8], "little"), int.from_bytes(value[8:16], "little")
    if index is None:
        return f"array of {count}"
    if index >= count:
        return "nothing"
    place = 16
    if item in _SCALARS:
        return _decoded_item(item, value, place + index * struct.calcsize("<" + _SCALARS[item]))
    for _ in range(index):
        place += 8 + _LENGTH.unpack_from(value, place)[0]
    return _decoded_item(item, value, place)


def _decoded_item(kind: int, value: bytes, place: int) -> object:
    if kind in _SCALARS:
        return struct.unpack_from("<" + _SCALARS[kind], value, place)[0]
    length = _LENGTH.unpack_from(value, place)[0]
    return value[place + 8 : place + 8 + length].decode("utf-8", "replace")


def item_count(value: bytes) -> int:
    """Number of items of an entry's value; 0 if it is no array."""
    is_array = int.from_bytes(value[:4], "little") == _ARRAY
    return int.from_bytes(value[8:16], "little") if is_array else 0


def item_size(value: bytes) -> int:
    """Bytes of an item of an entry's value; 0 if it is no array or one of strings."""
    kind = int.from_bytes(value[4:8], "little")
    is_array = int.from_bytes(value[:4], "little") == _ARRAY
    return struct.calcsize("<" + _SCALARS[kind]) if is_array and kind in _SCALARS else 0


def first_difference(one: bytes, other: bytes) -> int | None:
    """Index of the first item in which the values of two entries differ, both arrays of one type of item;
    ``None`` for other values."""
    if one[:8] != other[:8] or int.from_bytes(one[:4], "little") != _ARRAY:
        return None
    counts = [int.from_bytes(value[8:16], "little") for value in (one, other)]
    kind = int.from_bytes(one[4:8], "little")
    size = struct.calcsize("<" + _SCALARS[kind]) if kind in _SCALARS else 0
    place = 16
    for index in range(min(counts)):
        step = size or 8 + _LENGTH.unpack_from(one, place)[0]
        if one[place : place + step] != other[place : place + step]:
            return index
        place += step
    return min(counts)


class _Reader:
    def __init__(self, path: Path, stream: BufferedReader, size: int, keep: bool) -> None:
        self._path = path
        self._stream = stream
        self._size = size
        self._left = size
        self._room = _LARGEST_KEPT if keep else 0

    def contents(self) -> Contents:
        if self._take(4) != b"GGUF":
            raise self._error("does not begin with GGUF's magic bytes")
        version = self._number("I")
        if version not in (2, 3):
            raise self._error(f"GGUF version {version} is not supported (2 or 3)")
        count, entries = self._count("tensors"), self._count("metadata entries")
        values: dict[str, object] = {}
        kept: list[tuple[str, bytes]] = []
        for _ in range(entries):
            key = self._string()
            place = self._size - self._left
            value = self._value(self._number("I"))
            if value is not None:
                values[key] = value
            if self._room:
                kept.append((key, self._again(place)))
        tensors = [self._tensor() for _ in range(count)]
        end = self._size - self._left
        begin = self._data_begin(values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT))
        placed = tuple(replace(tensor, offset=begin + tensor.offset) for tensor in tensors)
        for tensor in placed:
            if tensor.offset + tensor.bytes > self._size:
                raise self._error(f"the file ends before the end of tensor {tensor.name!r}")
        metadata = Metadata(values, sum(math.prod(tensor.shape) for tensor in placed))
        return Contents(version, tuple(kept), metadata, placed, end, begin, self._size)

    def _again(self, place: int) -> bytes:
        """The bytes of a value that began at ``place``, once more."""
        count = self._size - self._left - place
        if count >= self._room:
            raise self._error(f"its metadata takes more than {_LARGEST_KEPT} bytes")
        self._room -= count
        self._stream.seek(place)
        data = self._stream.read(count)
        if len(data) < count:
            raise self._error("it has become shorter")
        return data

    def _tensor(self) -> Tensor:
        """One description; its offset counts from where the data begins."""
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(dimensions)]))
        code = self._number("I")
        try:
            kind = gguf.GGMLQuantizationType(code)
        except ValueError:
            raise self._error(f"tensor {name!r} has the unknown type {code}") from None
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise self._error(
                f"tensor {name!r} has rows of {shape[-1]}, no multiple of {kind.name}'s {block}"
            )
        return Tensor(name, kind, shape, self._number("Q"), math.prod(shape) // block * size)

    def _data_begin(self, alignment: object) -> int:
        if not isinstance(alignment, int) or not 0 < alignment <= _LARGEST_ALIGNMENT:
            raise self._error(f"general.alignment is {alignment!r}")
        return -(-(self._size - self._left) // alignment) * alignment

    def _value(self, kind: int) -> object:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise self._error(f"a metadata value has the unknown type {kind}")

    def _skip_array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize("<" + _SCALARS[kind]))
        elif kind == _STRING:
            if count * 8 > self._left:
                raise self._error("an array is longer than the file")
            if count > _MOST_STRINGS:
                raise self._error(f"an array has {count} strings")
            self._skip_strings(count)
        else:
            raise self._error(f"an array has items of type {kind}")

    def _skip_strings(self, count: int) -> None:
        """Pass over strings in pieces: one call for each would take a second for Gemma's vocabulary."""
        while count:
            data = self._stream.read(min(_CHUNK, self._left))
            place, last = 0, len(data) - 8
            while count and place <= last:
                place += 8 + _LENGTH.unpack_from(data, place)[0]
                count -= 1
            if not place or place > self._left:
                raise self._error("the file ends too early")
            self._left -= place
            self._stream.seek(self._size - self._left)

    def _string(self) -> str:
        length = self._number("Q")
        if length > _LONGEST_STRING:
            raise self._error(f"a string has {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error("a string is not UTF-8") from None

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > _MOST_ENTRIES:
            raise self._error(f"claims {count} {what}")
        return count

    def _scalar(self, code: str) -> object:
        value: object = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return value

    def _number(self, code: str) -> int:
        value = self._scalar(code)
        assert isinstance(value, int)
        return value

    def _skip(self, count: int) -> None:
        if count > self._left:
            raise self._error("the file ends too early")
        self._left -= count
        if count < 1 << 16:
            self._stream.read(count)
        else:
            self._stream.seek(count, 1)

    def _take(self, count: int) -> bytes:
        data = self._stream.read(count) if count <= self._left else b""
        if len(data) < count:
            raise self._error("the file ends too early")
        self._left -= count
        return data

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: not a whole GGUF file: {what}")
