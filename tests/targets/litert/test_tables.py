"""Flatbuffers read without belief: what they hold, and what is refused."""

from __future__ import annotations

import struct

import pytest

from converter.errors import CheckpointError
from targets.litert.tables import Flatbuffer

flatbuffers = pytest.importorskip("flatbuffers")


def damaged(problem):
    return CheckpointError(f"m.bin: {problem}")


def table(builder, **fields):
    """A table with ``number`` (int32, field 0), ``text`` (field 1), ``list`` (field 2)."""
    builder.StartObject(4)
    for index, name in enumerate(("number", "text", "list")):
        if name not in fields:
            continue
        if name == "number":
            builder.PrependInt32Slot(index, fields[name], 0)
        else:
            builder.PrependUOffsetTRelativeSlot(index, fields[name], 0)
    return builder.EndObject()


def finished(builder, root):
    builder.Finish(root)
    return bytes(builder.Output())


def read(data, most_parts=100):
    return Flatbuffer(data, damaged, most_parts).root()


def many(times):
    """A root whose list names one table ``times`` times."""
    builder = flatbuffers.Builder(64)
    text = builder.CreateString("a text of more than one part" * 3)
    one = table(builder, number=-7, text=text)
    builder.StartVector(4, times, 4)
    for _ in range(times):
        builder.PrependUOffsetTRelative(one)
    return finished(builder, table(builder, list=builder.EndVector()))


def test_numbers_texts_and_lists_are_read_and_what_is_left_out_is_nothing():
    root = read(many(3))
    assert [(one.number(0, "<i"), one.text(1)[:6]) for one in root.tables(2)] == [(-7, "a text")] * 3
    assert (root.number(0, "<i"), root.text(1), root.table(3), root.number(40, "<Q")) == (0, "", None, 0)
    assert root.integers(1) == ()


def test_one_part_that_many_lists_name_is_not_read_for_ever():
    with pytest.raises(CheckpointError, match=r"^m\.bin: it has more than 100 parts$"):
        list(read(many(101)).tables(2))
    with pytest.raises(CheckpointError, match="more than 100 parts"):
        [one.text(1) for one in read(many(60)).tables(2)]


def test_a_text_that_is_no_text_is_refused():
    builder = flatbuffers.Builder(64)
    root = table(builder, text=builder.CreateByteVector(b"\xff\xfe"))
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read(finished(builder, root)).text(1)
    builder = flatbuffers.Builder(64)
    root = table(builder, text=builder.CreateString("a" * 5000))
    with pytest.raises(CheckpointError, match="a text of 5000 bytes"):
        read(finished(builder, root)).text(1)


@pytest.mark.parametrize("data", [b"", b"\0\0", struct.pack("<I", 1 << 31), struct.pack("<Ii", 4, 1 << 30)])
def test_places_outside_the_bytes_are_refused(data):
    with pytest.raises(CheckpointError, match="it points to byte"):
        read(data)
