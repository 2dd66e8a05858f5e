"""What stands beside the models of a ``.litertlm`` file, compared with what the checkpoint gives.

Sections are found by kind: their order and places do not matter. A part that no checkpoint gives is a
difference.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from converter.checkpoint.safetensors import Shard
from converter.filenames import TOKENIZER
from converter.system.untrusted import shown
from targets.litert.bundle import Header, Section, StoredSection, read_header, read_section
from targets.litert.sections import EXECUTOR_METADATA, JSON_TOKENIZER, METADATA, MODEL
from targets.litert.stretches import first_other_byte
from targets.target import Difference

if TYPE_CHECKING:
    from google.protobuf.message import Message

_LIMIT: Final = 64 << 20
_VERSION: Final = (1, 7, 0)
#: Longest text of a difference, and what is shown before the place where two texts part.
_SHOWN, _BEFORE = 60, 15


def container_differences(
    path: Path, sections: Sequence[StoredSection], expected: Sequence[Section]
) -> Iterator[Difference]:
    """Differences of everything but the models' content; ``expected`` may have models without content."""
    header = read_header(path)
    yield from _header_differences(header, sections)
    wanted = {(section.kind, section.model_type): section for section in expected}
    counts = Counter((section.kind, section.model_type) for section in sections)
    for kind, model_type in wanted.keys() | counts.keys():
        count, due = counts[kind, model_type], int((kind, model_type) in wanted)
        if count != due:
            name = f"section {shown(kind)}" + (f" {shown(model_type)}" if model_type else "")
            yield Difference(name, str(due), str(count))
    for section in sections:
        one = wanted.get((section.kind, section.model_type))
        if one is not None and section.kind != MODEL and isinstance(one.content, bytes):
            yield from _content_differences(section.kind, one.content, read_section(path, section, _LIMIT))
    yield from _gap_differences(path, header.end, sections)


def _header_differences(header: Header, sections: Sequence[StoredSection]) -> Iterator[Difference]:
    if header.version != _VERSION:
        found, due = (".".join(map(str, one)) for one in (header.version, _VERSION))
        yield Difference("header: version", due, found, deciding=False)
    if header.reserved:
        yield Difference("header: reserved bytes", "0", str(header.reserved))
    if header.entries != (("Authors", "qatconvert"),):
        yield Difference(
            "header: entries", "Authors: qatconvert", shown(dict(header.entries)), deciding=False
        )
    for section, items in zip(sections, header.items, strict=True):
        named = () if section.model_type is None else (("model_type", section.model_type),)
        if items != named:
            yield Difference(f"header: items of section {shown(section.kind)}", shown(named), shown(items))
    for problem in header.unknown:
        yield Difference(f"header: {problem}", "none", "something that is not read")
    if header.spare is not None:
        yield Difference(f"header: byte {header.spare}", "0", "a byte that belongs to nothing")


def _gap_differences(path: Path, end: int, sections: Sequence[StoredSection]) -> Iterator[Difference]:
    shard = Shard(path)
    taken = [(0, end), *((one.offset, one.offset + one.size) for one in sections)]
    last = max(stop for _, stop in taken)
    place = first_other_byte(shard, 0, shard.size, taken)
    if place is not None:
        yield Difference(f"byte {place} of the file", "0", "a byte that belongs to no section")
    elif last < shard.size:
        yield Difference("end of the file", f"byte {last}", f"byte {shard.size}", deciding=False)


def _content_differences(kind: str, expected: bytes, found: bytes) -> Iterator[Difference]:
    if expected == found:
        return
    if kind == JSON_TOKENIZER:
        differences = list(_tokenizer_differences(expected, found))
    elif kind in (METADATA, EXECUTOR_METADATA):
        differences = list(_message_differences(kind, expected, found))
    else:
        differences = [_text_difference(kind, expected, found)]
    yield from differences or [Difference(kind, "the bytes of this version", "others of one meaning", False)]


def _tokenizer_differences(expected: bytes, found: bytes) -> Iterator[Difference]:
    """Differences of compressed texts, of which the second may be anything."""
    due = zlib.decompress(expected[8:])
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(found[8:], _LIMIT)
    except zlib.error as error:
        yield Difference(JSON_TOKENIZER, "a compressed text", f"what cannot be unpacked ({error})")
        return
    if not reader.eof:
        yield Difference(JSON_TOKENIZER, "a whole text", "one that is cut off or too long")
    if reader.unused_data:
        yield Difference(JSON_TOKENIZER, "one text", f"{len(reader.unused_data)} bytes behind it")
    if found[:8] != expected[:8]:
        size = int.from_bytes(found[:8], "little")
        yield Difference(f"{JSON_TOKENIZER}: size", str(len(due)), str(size))
    if text != due:
        yield _text_difference(TOKENIZER, due, text)


def _message_differences(kind: str, expected: bytes, found: bytes) -> Iterator[Difference]:
    from google.protobuf.message import DecodeError
    from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2

    name = kind.removesuffix("Proto")
    message = {
        "LlmMetadata": llm_metadata_pb2.LlmMetadata,
        "ExecutorMetadata": executor_metadata_pb2.ExecutorMetadata,
    }[name]
    ours, theirs = message(), message()
    ours.ParseFromString(expected)
    try:
        theirs.ParseFromString(found)
    except DecodeError:
        yield Difference(name, "a message", "what is none")
        return
    yield from _fields_differences(name, ours, theirs)


def _fields_differences(where: str, ours: Message, theirs: Message) -> Iterator[Difference]:
    """Differences of two messages of one type, field by field."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    for unknown in UnknownFieldSet(theirs):
        yield Difference(f"{where}: field {unknown.field_number}", "none", "a field that is not known")
    for field in ours.DESCRIPTOR.fields:
        name = f"{where}.{field.name}"
        pair = getattr(ours, field.name), getattr(theirs, field.name)
        if field.is_repeated:
            yield from _list_differences(name, *map(list, pair), messages=field.message_type is not None)
        elif field.has_presence and ours.HasField(field.name) != theirs.HasField(field.name):
            due, found = ("set" if one.HasField(field.name) else "not set" for one in (ours, theirs))
            yield Difference(name, due, found)
        elif field.message_type is not None:
            if ours.HasField(field.name):
                yield from _fields_differences(name, *pair)
        elif repr(pair[0]) != repr(pair[1]):  # so that a value that is no number equals itself
            yield _value_difference(name, *pair)


def _list_differences(
    where: str, ours: Sequence[Any], theirs: Sequence[Any], *, messages: bool
) -> Iterator[Difference]:
    if len(ours) != len(theirs):
        yield Difference(where, f"{len(ours)} of them", f"{len(theirs)} of them")
        return
    for index, pair in enumerate(zip(ours, theirs, strict=True)):
        name = f"{where}[{index}]"
        if messages:
            yield from _fields_differences(name, *pair)
        elif pair[0] != pair[1]:
            yield _value_difference(name, *pair)


def _value_difference(where: str, ours: object, theirs: object) -> Difference:
    if isinstance(ours, str) and isinstance(theirs, str):
        return _text_difference(where, ours.encode(), theirs.encode())
    return Difference(where, shown(ours), shown(theirs))


def _text_difference(where: str, ours: bytes, theirs: bytes) -> Difference:
    """The difference of two texts, shown from a little before the place where they part."""
    place = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(ours), len(theirs)) if place is None else place
    start = max(0, place - _BEFORE)
    due, found = (shown(one[start : start + _SHOWN].decode("utf-8", "replace")) for one in (ours, theirs))
    return Difference(f"{where}, byte {place}", due, found)


def section_by_type(sections: Sequence[StoredSection]) -> Mapping[str, StoredSection]:
    """The models of a bundle by type, the first of each."""
    found: dict[str, StoredSection] = {}
    for section in sections:
        if section.kind == MODEL and section.model_type is not None:
            found.setdefault(section.model_type, section)
    return found
