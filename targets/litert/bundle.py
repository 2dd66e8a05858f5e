"""``.litertlm`` files: the container in which LiteRT-LM takes a model, its tokenizer and its metadata.

The layout (https://github.com/google-ai-edge/LiteRT-LM, ``schema/core/litertlm_header_schema.fbs`` and
``litert_lm_builder``): eight bytes ``LITERTLM``, three numbers of the version (uint32), four bytes of zeros,
the end of the header (uint64), at byte 32 a flatbuffer ``LiteRTLMMetaData`` that lists the sections, and the
sections, each from a multiple of 16 KiB on. Everything is little-endian.

The library's own builder copies whole models and adds a random number and the time of day; this one streams
a model to its place, and equal sections give equal bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from converter.document import shown
from converter.errors import CheckpointError
from converter.shards import Shard
from targets.writing import destination_error

#: Sections begin at multiples of this.
ALIGNMENT: Final = 16 << 10
#: The kind of a section with a model.
MODEL: Final = "TFLiteModel"
#: Model types under which LiteRT-LM finds the models of a bundle.
PREFILL_DECODE: Final = "tf_lite_prefill_decode"
EMBEDDER: Final = "tf_lite_embedder"
PER_LAYER_EMBEDDER: Final = "tf_lite_per_layer_embedder"
#: Kinds of sections, in the order of the schema's ``AnySectionDataType``.
KINDS: Final = (
    "NONE",
    "GenericBinaryData",
    "Deprecated",
    MODEL,
    "SP_Tokenizer",
    "LlmMetadataProto",
    "HF_Tokenizer_Zlib",
    "TFLiteWeights",
    "EmbeddingMetadataProto",
    "ExecutorMetadataProto",
    "TtsMetadataProto",
    "AsrMetadataProto",
)
_MAGIC: Final = b"LITERTLM"
_VERSION: Final = (1, 7, 0)
_BEGIN: Final = 32
_AUTHORS: Final = "qatconvert"
#: A header of a few sections has less than 1 KB.
_LARGEST_HEADER: Final = 1 << 20
_MOST_SECTIONS: Final = 256
_LONGEST_TEXT: Final = 1 << 12
#: ``VData``'s number of a text.
_TEXT: Final = 9


@dataclass(frozen=True, slots=True)
class Section:
    """A section to write: its kind (one of ``KINDS``), what it holds, and the type of a model.

    ``content`` is bytes, or a function that writes them into a stream from its position on, which is a
    multiple of 16 KiB; the section ends where the file does when it returns, so that it may write in any
    order, also through the stream's ``fileno``.
    """

    kind: str
    content: bytes | Callable[[BinaryIO], object]
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
            stream.write(_MAGIC + struct.pack("<4IQ", *_VERSION, 0, _BEGIN + len(header)) + header)
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
    if start[:8] != _MAGIC:
        raise CheckpointError(f"{path}: not a .litertlm file: does not begin with LITERTLM")
    if len(start) < _BEGIN:
        raise _damaged(path, "the header is cut off")
    major, minor, patch, _, end = struct.unpack_from("<4IQ", start, 8)
    if major != _VERSION[0]:
        raise CheckpointError(f"{path}: version {major}.{minor}.{patch} of .litertlm is not read (only 1)")
    if not _BEGIN < end <= min(shard.size, _LARGEST_HEADER):
        raise _damaged(path, f"its header ends at byte {end} of {shard.size}")
    header = _Header(path, shard.read(_BEGIN, end - _BEGIN, "the header"))
    sections = tuple(header.sections())
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


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a whole .litertlm file: {problem}")


class _Header:
    """The flatbuffer of a header, of which nothing is believed; places are bytes from its beginning.

    A table begins with the distance back to a list of its fields' places (int32); a list has its own length
    and the table's in bytes, then two bytes a field (https://flatbuffers.dev/internals/).
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data

    def sections(self) -> Iterator[StoredSection]:
        """Every section that the header lists, with places as they are given."""
        root = self._follow(0)
        metadata = self._field(root, 1)
        if metadata is None:
            raise self._error("it lists no sections")
        for table in self._tables(self._follow(metadata), 0, "sections"):
            begin, end = (self._scalar(table, field, "<Q") for field in (1, 2))
            number = self._scalar(table, 3, "<B")
            kind = KINDS[number] if number < len(KINDS) else f"kind {number}"
            yield StoredSection(kind, self._model_type(table), begin, end - begin)

    def _model_type(self, section: int) -> str | None:
        for item in self._tables(section, 0, "values of a section"):
            key, value = self._field(item, 0), self._field(item, 2)
            if key is None or value is None or self._scalar(item, 1, "<B") != _TEXT:
                continue
            text = self._field(self._follow(value), 0)
            if text is not None and self._text(key) == "model_type":
                return self._text(text)
        return None

    def _tables(self, table: int, field: int, what: str) -> Iterator[int]:
        """Places of the tables in a list."""
        place = self._field(table, field)
        if place is None:
            return
        first = self._follow(place)
        count = self._number(first, "<I")
        if count > _MOST_SECTIONS:
            raise self._error(f"it lists {count} {what}")
        for index in range(count):
            yield self._follow(first + 4 + 4 * index)

    def _text(self, place: int) -> str:
        """The text to which ``place`` points."""
        first = self._follow(place)
        count = self._number(first, "<I")
        data = self._data[first + 4 : first + 4 + count]
        if count > _LONGEST_TEXT or len(data) < count:
            raise self._error(f"a text has {count} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self._error("a text is not UTF-8") from None

    def _field(self, table: int, field: int) -> int | None:
        """Where a table's field lies, ``None`` if it is left out."""
        fields = table - self._number(table, "<i")
        entry = 4 + 2 * field
        if entry + 2 > self._number(fields, "<H"):
            return None
        offset = self._number(fields + entry, "<H")
        return table + offset if offset else None

    def _scalar(self, table: int, field: int, format: str) -> int:
        place = self._field(table, field)
        return 0 if place is None else self._number(place, format)

    def _follow(self, place: int) -> int:
        return place + self._number(place, "<I")

    def _number(self, place: int, format: str) -> int:
        if not 0 <= place <= len(self._data) - struct.calcsize(format):
            raise self._error(f"it points to byte {place} of {len(self._data)}")
        value: int = struct.unpack_from(format, self._data, place)[0]
        return value

    def _error(self, problem: str) -> CheckpointError:
        return _damaged(self._path, f"the header is damaged: {problem}")
