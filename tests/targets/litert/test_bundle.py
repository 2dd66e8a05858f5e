""".litertlm files: LiteRT-LM's own reader finds what was written, and strangers' files do no harm."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import CheckpointError, DestinationError
from targets.litert.bundle import (
    ALIGNMENT,
    Section,
    StoredSection,
    find_section,
    read_section,
    read_sections,
    write_bundle,
)
from targets.litert.sections import EMBEDDER, PREFILL_DECODE

peek = pytest.importorskip("litert_lm_builder.litertlm_peek")

SECTIONS = (
    Section("LlmMetadataProto", b""),
    Section("HF_Tokenizer_Zlib", b"tokenizer" * 4000),
    Section("TFLiteModel", b"graph" * 100, PREFILL_DECODE),
    Section("TFLiteModel", b"rows", EMBEDDER),
)


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "model.litertlm"
    write_bundle(path, SECTIONS)
    return path


def test_sections_are_read_back_as_they_were_written(bundle):
    sections = read_sections(bundle)
    assert [(one.kind, one.model_type) for one in sections] == [
        (one.kind, one.model_type) for one in SECTIONS
    ]
    assert [read_section(bundle, one, 1 << 20) for one in sections] == [one.content for one in SECTIONS]
    assert all(one.offset % ALIGNMENT == 0 for one in sections)


def test_the_librarys_own_reader_finds_the_same_sections(bundle):
    header = peek.read_litertlm_header(str(bundle), io.StringIO()).SectionMetadata()
    objects = [header.Objects(index) for index in range(header.ObjectsLength())]
    kind = peek.litertlm_core.any_section_data_type_to_string
    assert [
        StoredSection(
            kind(one.DataType()),
            peek.get_model_type(one),
            one.BeginOffset(),
            one.EndOffset() - one.BeginOffset(),
        )
        for one in objects
    ] == list(read_sections(bundle))


def test_sections_of_the_librarys_own_writer_are_read(tmp_path):
    builder_module = pytest.importorskip("litert_lm_builder.litertlm_builder")
    tokenizer, model = tmp_path / "tokenizer.json", tmp_path / "model.tflite"
    tokenizer.write_text("{}")
    model.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    builder = builder_module.LitertLmFileBuilder()
    builder.add_system_metadata(
        builder_module.Metadata(key="Authors", value="test", dtype=builder_module.DType.STRING)
    )
    builder.add_hf_tokenizer(str(tokenizer))
    builder.add_tflite_model(str(model), builder_module.TfLiteModelType.PREFILL_DECODE)
    path = tmp_path / "model.litertlm"
    with path.open("wb") as stream:
        builder.build(stream)
    sections = read_sections(path)
    found = find_section(path, sections, "TFLiteModel", PREFILL_DECODE)
    assert [one.kind for one in sections] == ["HF_Tokenizer_Zlib", "TFLiteModel"]
    assert read_section(path, found, 1 << 20) == model.read_bytes()


def test_equal_sections_give_equal_bytes(bundle, tmp_path):
    again = tmp_path / "again.litertlm"
    write_bundle(again, SECTIONS)
    assert again.read_bytes() == bundle.read_bytes()


def test_a_model_is_streamed_to_its_place_in_any_order(tmp_path):
    path = tmp_path / "model.litertlm"

    def fill(stream):
        begin = stream.tell()
        assert begin % ALIGNMENT == 0
        os.pwrite(stream.fileno(), b"behind", begin + 100_000)
        stream.write(b"before")

    write_bundle(path, [Section("TFLiteModel", fill, PREFILL_DECODE), Section("SP_Tokenizer", b"after")])
    model, tokenizer = read_sections(path)
    content = read_section(path, model, 1 << 20)
    assert (len(content), content[:6], content[-6:]) == (100_006, b"before", b"behind")
    assert read_section(path, tokenizer, 100) == b"after"


def test_a_model_that_fails_leaves_no_file_that_looks_whole(tmp_path):
    path = tmp_path / "model.litertlm"

    def fail(stream):
        stream.write(b"a part")
        raise CheckpointError("the weights end")

    with pytest.raises(CheckpointError, match="the weights end"):
        write_bundle(path, [*SECTIONS, Section("TFLiteModel", fail, PREFILL_DECODE)])
    with pytest.raises(CheckpointError, match="does not begin with LITERTLM"):
        read_sections(path)


def test_a_section_larger_than_four_gibibytes_keeps_its_place(tmp_path):
    path = tmp_path / "model.litertlm"
    size = (1 << 32) + 5
    sections = [
        Section("TFLiteModel", lambda stream: stream.truncate(stream.tell() + size)),  # a hole: no bytes
        Section("SP_Tokenizer", b"after"),
    ]
    write_bundle(path, sections)
    model, tokenizer = read_sections(path)
    assert model.size == size
    assert tokenizer.offset > 1 << 32
    assert read_section(path, tokenizer, 100) == b"after"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(DestinationError, match="cannot be written") as failure:
        write_bundle(tmp_path / "absent" / "model.litertlm", SECTIONS)
    assert "\n" not in str(failure.value)


def test_a_section_that_is_missing_or_there_twice_is_refused(bundle):
    sections = read_sections(bundle)
    assert find_section(bundle, sections, "TFLiteModel", EMBEDDER).size == 4
    for kind, count in (("SP_Tokenizer", 0), ("TFLiteModel", 2)):
        with pytest.raises(CheckpointError, match=f"has {count} sections {kind}, expected 1"):
            find_section(bundle, sections, kind)


def test_a_section_longer_than_allowed_is_not_read(bundle):
    tokenizer = find_section(bundle, read_sections(bundle), "HF_Tokenizer_Zlib")
    with pytest.raises(CheckpointError, match="has 36000 bytes, more than 100"):
        read_section(bundle, tokenizer, 100)


def test_reading_needs_no_package_of_the_target(bundle):
    script = (
        "import sys; from pathlib import Path\n"
        "sys.modules.update(dict.fromkeys(('flatbuffers', 'litert_lm_builder', 'google.protobuf')))\n"
        "from targets.litert.bundle import read_sections\n"
        "print(len(read_sections(Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", script, bundle], capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"


def refused(path, data):
    """The message for a file with other content."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as failure:
        read_sections(path)
    message = str(failure.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("offset", "bytes", "problem"),
    [
        (0, b"GGUF", "does not begin with LITERTLM"),
        (8, struct.pack("<I", 2), "version 2.7.0 of .litertlm is not read"),
        (24, struct.pack("<Q", 32), "its header ends at byte 32"),
        (24, struct.pack("<Q", 1 << 62), "its header ends at byte"),
        (24, struct.pack("<Q", 40), "the header is damaged"),
        (32, struct.pack("<I", 0xFFFFFFFF), "the header is damaged: it points to byte"),
    ],
)
def test_a_damaged_beginning_is_one_line(bundle, offset, bytes, problem):
    data = bundle.read_bytes()
    assert problem in refused(bundle, data[:offset] + bytes + data[offset + len(bytes) :])


def test_a_file_that_is_cut_off_is_one_line(bundle):
    data = bundle.read_bytes()
    assert "not a .litertlm file" in refused(bundle, b"")
    assert "the header is cut off" in refused(bundle, data[:20])
    assert "its header ends at" in refused(bundle, data[:40])
    assert "section 'TFLiteModel' reaches from byte" in refused(bundle, data[:-1])


@pytest.mark.parametrize(
    ("begin", "end", "problem"),
    [(16384, 1 << 63, "reaches from"), (49152, 49151, "reaches from"), (16, 64, "lies over what is before")],
)
def test_sections_outside_the_file_or_over_others_are_one_line(bundle, begin, end, problem):
    data = bytearray(bundle.read_bytes())
    last = read_sections(bundle)[-1]
    for old, new in ((last.offset, begin), (last.offset + last.size, end)):
        place = data.index(struct.pack("<Q", old), 32, ALIGNMENT)
        data[place : place + 8] = struct.pack("<Q", new)
    assert problem in refused(bundle, bytes(data))


HEADER = st.integers(0, 700)


@given(changes=st.lists(st.tuples(HEADER, st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_any_damage_to_the_header_is_read_or_refused(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("damaged") / "model.litertlm"
    write_bundle(path, SECTIONS)
    data = bytearray(path.read_bytes())
    for offset, bytes in changes:
        data[offset : offset + len(bytes)] = bytes
    path.write_bytes(data)
    message = ""
    sections: tuple[StoredSection, ...] = ()
    try:
        sections = read_sections(path)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    assert all(32 < one.offset <= one.offset + one.size <= len(data) for one in sections)
