"""``.litertlm`` files: the container in which LiteRT-LM takes a model, its tokenizer and its metadata.

The layout (https://github.com/google-ai-edge/LiteRT-LM, ``schema/core/litertlm_header_schema.fbs`` and
``litert_lm_builder``): eight bytes ``LITERTLM``, three numbers of the version (uint32), four bytes of zeros,
and the end of the header (uint64). At byte 32 stands a flatbuffer ``LiteRTLMMetaData`` that lists the
sections. The sections follow, each from a multiple of 16 KiB on. Everything is little-endian.

The library's own builder copies whole models and adds a random number and the time of day. This one streams a
model to its place, and equal sections give equal bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from converter.checkpoint.safetensors import Shard
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.sections import KINDS
from targets.litert.tables import Flatbuffer, Table
from targets.writing import destination_error

#: Sections begin at multiples of this.
ALIGNMENT: Final = 16 << 10
#: What a bundle begins with.
MAGIC: Final = b"LITERTLM"
_VERSION: Final = (1, 7, 0)
_BEGIN: Final = 32
_AUTHORS: Final = "qatconvert"
#: A header of a few sections has less than 1 KB.
_LARGEST_HEADER: Final = 1 << 20
#: Sections, and values of all of them.
_MOST_PARTS: Final = 4096
#: Bytes that are copied at a time.
_CHUNK: Final = 16 << 20
#: ``VData``'s number of a text.
_TEXT: Final = 9


@dataclass(frozen=True, slots=True)
class Section:
    """A section to write."""

    #: One of ``KINDS``.
    kind: str
    #: What it holds: bytes, or a function that writes them into a stream from its position on, which is a
    #: multiple of 16 KiB. The section ends where the file does when the function returns. So it may write in
    #: any order, also through the stream's ``fileno``.
    content: bytes | Callable[[BinaryIO], object]
    #: The type of a model.
    model_type: str | None = None


@dataclass(frozen=True, slots=True)
class StoredSection:
    """A section of a file: ``size`` bytes from ``offset`` on."""

    kind: str
    model_type: str | None
    offset: int
    size: int


def write_bundle(path: Path, sections: Sequence[Section]) -> tuple[StoredSection, ...]:
    """Write ``sections`` in their order; the header comes last, so that nothing takes a part for a bundle.

    Raises ``DestinationError`` for a file that cannot be written, and what a section's function raises.
    """
    begin = _aligned(_BEGIN + len(_header([StoredSection(s.kind, s.model_type, 1, 1) for s in sections])))
    stored: list[StoredSection] = []
    try:
        with open(path, "w+b") as stream:
            for section in sections:
                size = _write_section(stream, section, begin)
                stored.append(StoredSection(section.kind, section.model_type, begin, size))
                begin = _aligned(begin + size)
            header = _header(stored)
            stream.seek(0)
            stream.write(MAGIC + struct.pack("<4IQ", *_VERSION, 0, _BEGIN + len(header)) + header)
    except OSError as error:
        raise destination_error(path, error) from error
    return tuple(stored)


def _write_section(stream: BinaryIO, section: Section, begin: int) -> int:
    """Write a section from byte ``begin`` on, behind which the file ends, and return its size."""
    stream.truncate(begin)
    stream.seek(begin)
    if isinstance(section.content, bytes):
        stream.write(section.content)
    else:
        section.content(stream)
    stream.flush()
    return os.fstat(stream.fileno()).st_size - begin


def _header(sections: Sequence[StoredSection]) -> bytes:
    """The flatbuffer that lists ``sections``; its length depends on their number, kinds and types only."""
    import flatbuffers
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    def entry(key: str, value: str) -> object:
        return schema.KeyValuePairT(key=key, value=schema.StringValueT(value), valueType=_TEXT)

    objects = [
        schema.SectionObjectT(
            items=[entry("model_type", section.model_type)] if section.model_type else [],
            dataType=KINDS.index(section.kind),
            beginOffset=section.offset,
            endOffset=section.offset + section.size,
        )
        for section in sections
    ]
    root = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=[entry("Authors", _AUTHORS)]),
        sectionMetadata=schema.SectionMetadataT(objects=objects),
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(root.Pack(builder))
    return bytes(builder.Output())


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def read_sections(path: Path) -> tuple[StoredSection, ...]:
    """The sections of a file, in its order; reads the header alone.

    The file may come from a stranger: raises ``CheckpointError`` for one that is no ``.litertlm`` file, is
    cut off, has another major version, or whose sections lie outside it or over one another.
    """
    shard = Shard(path)
    start = shard.read(0, min(_BEGIN, shard.size), "the header")
    if start[:8] != MAGIC:
        raise CheckpointError(f"{path}: not a .litertlm file: does not begin with LITERTLM")
    if len(start) < _BEGIN:
        raise _damaged(path, "the header is cut off")
    major, minor, patch, _, end = struct.unpack_from("<4IQ", start, 8)
    if major != _VERSION[0]:
        raise CheckpointError(f"{path}: version {major}.{minor}.{patch} of .litertlm is not read (only 1)")
    if not _BEGIN < end <= min(shard.size, _LARGEST_HEADER):
        raise _damaged(path, f"its header ends at byte {end} of {shard.size}")
    data = shard.read(_BEGIN, end - _BEGIN, "the header")
    sections = tuple(_listed(Flatbuffer(data, partial(_damaged_header, path), _MOST_PARTS)))
    free = end
    for section in sorted(sections, key=lambda section: section.offset):
        if section.size < 0 or section.offset + section.size > shard.size:
            raise _damaged(
                path,
                f"section {shown(section.kind)} reaches from byte {section.offset} to "
                f"{section.offset + section.size} of {shard.size}",
            )
        if section.offset < free:
            raise _damaged(path, f"section {shown(section.kind)} lies over what is before it")
        free = section.offset + section.size
    return sections


@dataclass(frozen=True, slots=True)
class Header:
    """All that a header says beside places."""

    version: tuple[int, int, int]
    #: The bytes that are reserved.
    reserved: int
    #: Keys and texts about the file.
    entries: tuple[tuple[str, str], ...]
    #: Keys and texts about each section, in the order of ``read_sections``.
    items: tuple[tuple[tuple[str, str], ...], ...]
    #: The byte at which the header ends.
    end: int
    #: What is not read, one line each.
    unknown: tuple[str, ...]
    #: The first byte other than 0 that belongs to nothing.
    spare: int | None


def read_header(path: Path) -> Header:
    """The header of a file whose sections ``read_sections`` has read; raises ``CheckpointError``."""
    shard = Shard(path)
    major, minor, patch, reserved, end = struct.unpack("<4IQ", shard.read(8, _BEGIN - 8, "the header"))
    data = shard.read(_BEGIN, end - _BEGIN, "the header")
    header = Flatbuffer(data, partial(_damaged_header, path), _MOST_PARTS, covered=True)
    unknown: list[str] = []
    root = _known(header.root(), 2, "the header", unknown)
    about = root.table(0)
    entries = () if about is None else _items(_known(about, 1, "the header", unknown), unknown)
    listed, items = root.table(1), []
    if listed is not None:
        for one in _known(listed, 1, "the header", unknown).tables(0):
            items.append(_items(_known(one, 4, "a section", unknown), unknown))
            for field, format in ((1, "<Q"), (2, "<Q"), (3, "<B")):
                one.number(field, format)
    version = (major, minor, patch)
    return Header(version, reserved, entries, tuple(items), end, tuple(unknown), header.uncovered())


def _known(table: Table, fields: int, what: str, unknown: list[str]) -> Table:
    """A table that should have no more than so many fields."""
    unknown += [f"{what}: field {field}" for field in table.fields() if field >= fields]
    return table


def _items(table: Table, unknown: list[str]) -> tuple[tuple[str, str], ...]:
    """The keys and texts of a table's first list."""
    found = []
    for item in table.tables(0):
        key, kind, value = _known(item, 3, "an item", unknown).text(0), item.number(1, "<B"), item.table(2)
        text = f"a value of kind {kind}"
        if value is not None and kind == _TEXT:
            text = _known(value, 1, "a text", unknown).text(0)
        elif value is not None:
            unknown.append(f"item {shown(key)} of kind {kind}")
        found.append((key, text))
    return tuple(found)


def find_section(
    path: Path, sections: Sequence[StoredSection], kind: str, model_type: str | None = None
) -> StoredSection:
    """The one section of a kind (and type of model); raises ``CheckpointError`` for none or several."""
    found = [one for one in sections if one.kind == kind and model_type in (None, one.model_type)]
    if len(found) != 1:
        name = f"{kind} {model_type}" if model_type else kind
        raise CheckpointError(f"{path}: has {len(found)} sections {name}, expected 1")
    return found[0]


def read_section(path: Path, section: StoredSection, limit: int) -> bytes:
    """The bytes of a section that has at most ``limit``; raises ``CheckpointError``."""
    if section.size > limit:
        raise _damaged(path, f"section {section.kind} has {section.size} bytes, more than {limit}")
    return Shard(path).read(section.offset, section.size, f"section {section.kind}")


def copy_section(path: Path, section: StoredSection, stream: BinaryIO) -> None:
    """Copy a section of the file ``path`` to where ``stream`` stands. Raises ``CheckpointError`` if the file
    ends before, and ``OSError`` if it cannot be read or ``stream`` cannot be written."""
    with path.open("rb") as source:
        source.seek(section.offset)
        left = section.size
        while left:
            data = source.read(min(left, _CHUNK))
            if not data:
                raise _damaged(path, f"section {section.kind} lacks {left} bytes")
            stream.write(data)
            left -= len(data)


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole .litertlm file: {problem}")


def _damaged_header(path: Path, problem: str) -> CheckpointError:
    return _damaged(path, f"the header is damaged: {problem}")


def _listed(header: Flatbuffer) -> Iterator[StoredSection]:
    """Every section that a header lists, with places as they are given."""
    metadata = header.root().table(1)
    if metadata is None:
        raise header.damaged("it lists no sections")
    for section in metadata.tables(0):
        begin, end, number = section.number(1, "<Q"), section.number(2, "<Q"), section.number(3, "<B")
        kind = KINDS[number] if number < len(KINDS) else f"kind {number}"
        yield StoredSection(kind, _model_type(section), begin, end - begin)


def _model_type(section: Table) -> str | None:
    for item in section.tables(0):
        value = item.table(2)
        if value is not None and item.number(1, "<B") == _TEXT and item.text(0) == "model_type":
            return value.text(0)
    return None
