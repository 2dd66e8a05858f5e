"""A checkpoint is read from whatever kind of source is registered: a directory, or one that others bring."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.opened import open_checkpoint, open_description, read_description
from converter.checkpoint.source import find_kind, open_source
from converter.errors import CheckpointError
from converter.names import Source, resolve
from converter.system.digests import Digests, sha256
from support.distributions import write_distribution
from support.outside import archive_source, register

Make = Callable[..., Path]
ARCHIVE = archive_source()
MOST_DIRECTORY, write_zip = ARCHIVE.MOST_DIRECTORY, ARCHIVE.write_zip
KIND = f"""
from {ARCHIVE.__name__} import KIND as zipped
from dataclasses import replace

def fails(path):
    raise RuntimeError("no such library")

OTHER = replace(zipped, name="other")
FAILING = replace(zipped, name="failing", recognises=fails)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``tests/outside`` brings is registered."""
    packages = tmp_path / "outside"
    register(packages)
    monkeypatch.syspath_prepend(packages)


@pytest.fixture
def archive(checkpoint_factory: Make, tmp_path: Path, outside: None) -> Path:
    return write_zip(checkpoint_factory("text", shards=2), tmp_path / "model.zip")


def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """Register further kinds of sources."""
    packages = write_distribution(
        tmp_path / "further", "further", {"qatconvert.sources": entries}, {"further_kinds": KIND}
    )
    monkeypatch.syspath_prepend(packages)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(str(path))
    return line


def test_a_directory_is_read_as_one(checkpoint_factory: Make) -> None:
    assert open_source(checkpoint_factory("text")) == Directory(checkpoint_factory("text"))


def test_a_checkpoint_from_a_zip_is_the_same_checkpoint(archive: Path, checkpoint_factory: Make) -> None:
    one, other = open_checkpoint(archive), open_checkpoint(checkpoint_factory("text", shards=2))
    assert (one.config, one.architecture, one.form) == (other.config, other.architecture, other.form)
    assert (one.tokenizer.tokens, one.generation) == (other.tokenizer.tokens, other.generation)
    assert list(one.weights) == list(other.weights)
    for name, weight in one.weights.items():
        assert np.array_equal(
            weight.floats(0, weight.rows), other.weights[name].floats(0, weight.rows), equal_nan=True
        )
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert one.documents.content(name, 1 << 26) == other.documents.content(name, 1 << 26)


def test_its_one_file_is_listed_with_its_digest(archive: Path) -> None:
    (archive.parent / "unread.zip").write_bytes(b"1")
    checkpoint, digests = open_checkpoint(archive), Digests()
    digests.add([*checkpoint.files, archive.parent / "unread.zip"])
    assert checkpoint.files == (archive,)
    entry = {"path": "model.zip", "bytes": archive.stat().st_size, "sha256": sha256(archive)}
    assert checkpoint.source.entries(digests) == [entry]
    assert (checkpoint.source.kind, str(checkpoint.source)) == (ARCHIVE.KIND.name, str(archive))


def test_its_directory_has_the_files_and_goes_with_the_checkpoint(
    archive: Path, checkpoint_factory: Make
) -> None:
    checkpoint = open_checkpoint(archive)
    directory = checkpoint.source.directory()
    assert checkpoint.source.directory() == directory
    expected = {path.name: sha256(path) for path in checkpoint_factory("text", shards=2).iterdir()}
    assert {path.name: sha256(path) for path in directory.iterdir()} == expected
    del checkpoint
    assert not directory.exists()


def test_what_describes_it_is_read_without_weights(archive: Path) -> None:
    described = read_description(archive)
    assert described.tokenizer is not None
    assert described.has_weights()
    with ZipFile(archive) as whole, ZipFile(archive.with_name("part.zip"), "w") as part:
        for name in whole.namelist():
            if not name.endswith("-of-00002.safetensors"):
                part.writestr(name, whole.read(name))
    assert not read_description(archive.with_name("part.zip")).has_weights()
    assert not open_description(archive.with_name("part.zip")).weights
    assert "model-00001-of-00002.safetensors: is missing" in refusal(archive.with_name("part.zip"))


def test_a_model_is_named_as_the_file_is_without_its_suffix(archive: Path) -> None:
    assert resolve(str(archive)) == Source("file", "model", path=archive)


def test_a_file_of_no_kind_is_refused_as_before(archive: Path) -> None:
    other = archive.with_name("other.zip")
    other.write_bytes(b"no archive")
    assert find_kind(other) == (None, [])
    assert refusal(other) == f"{other}: is neither a directory nor another source"
    with pytest.raises(CheckpointError, match=r"other\.zip: not a GGUF file \(safetensors: give"):
        resolve(str(other))


def test_without_its_distribution_a_zip_is_a_file_of_no_kind(
    checkpoint_factory: Make, tmp_path: Path
) -> None:
    archive = write_zip(checkpoint_factory("text"), tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"model\.zip: not a GGUF file"):
        resolve(str(archive))


def test_two_kinds_that_recognise_a_file_are_named(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources(tmp_path, monkeypatch, other="further_kinds:OTHER")
    assert f"the sources 'other' and '{ARCHIVE.KIND.name}' recognise it: uninstall all but one" in refusal(
        archive
    )


@pytest.mark.parametrize(
    ("object_", "told"),
    [
        (
            "further_kinds:ABSENT",
            "entry point 'bad' of qatconvert.sources, which 'further' registers, cannot",
        ),
        ("further_kinds:FAILING", "the source bad fails on it: RuntimeError: no such library"),
        ("further_kinds:fails", "is no SourceKind, but function"),
    ],
)
def test_a_broken_kind_is_told_only_where_no_other_reads_the_file(
    archive: Path,
    checkpoint_factory: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    object_: str,
    told: str,
) -> None:
    sources(tmp_path, monkeypatch, bad=object_)
    assert open_checkpoint(archive).weights
    assert open_checkpoint(checkpoint_factory("text")).weights
    other = archive.with_name("other.bin")
    other.write_bytes(b"1")
    assert told in refusal(other)
    with pytest.raises(CheckpointError, match=r"not a GGUF file .*bad"):
        resolve(str(other))


# What a stranger may have written


def test_compressed_members_are_refused(checkpoint_factory: Make, tmp_path: Path, outside: None) -> None:
    archive = write_zip(checkpoint_factory("text"), tmp_path / "model.zip", ZIP_DEFLATED)
    assert "is not stored as it is: make the archive with zip -0" in refusal(archive)


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "a/b", "a\\b", ".hidden", "a\x1b", "c:d"])
def test_members_that_are_no_plain_files_are_refused(archive: Path, name: str) -> None:
    with ZipFile(archive, "a") as opened:
        opened.writestr(name, b"{}")
    assert "is no plain file name; refused" in refusal(archive)


def test_a_member_that_is_there_twice_is_refused(archive: Path) -> None:
    with warnings.catch_warnings(), ZipFile(archive, "a") as opened:
        warnings.simplefilter("ignore")  # zipfile's own, of the second name
        opened.writestr("config.json", b"{}")
    assert "member 'config.json' is there twice" in refusal(archive)


def test_members_that_overlap_are_refused(archive: Path) -> None:
    with ZipFile(archive) as opened:
        first, second = opened.infolist()[:2]
    data = bytearray(archive.read_bytes())
    for where, step in ((data.index(b"PK\x01\x02"), 20), (first.header_offset, 18)):
        size = second.header_offset + 40 - first.header_offset
        data[where + step : where + step + 8] = struct.pack("<II", size, size)
    archive.write_bytes(data)
    assert "overlaps what lies beside it" in refusal(archive)


def test_a_member_behind_the_end_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    place = data.index(b"PK\x01\x02") + 20
    data[place : place + 8] = struct.pack("<II", 1 << 31, 1 << 31)
    archive.write_bytes(data)
    assert "overlaps what lies beside it" in refusal(archive)


def test_a_local_header_of_another_name_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    place = data.index(b"config.json")
    data[place : place + 11] = b"konfig.json"
    archive.write_bytes(data)
    assert "has another local header than the directory says" in refusal(archive)


def test_a_directory_that_fills_the_memory_is_refused(archive: Path) -> None:
    with ZipFile(archive, "a") as opened:
        for number in range(MOST_DIRECTORY // 40_000):
            opened.writestr(f"{number}" + "n" * 60_000, b"")
    assert f"has a directory of more than {MOST_DIRECTORY} bytes" in refusal(archive)


@pytest.mark.parametrize("share", [0.001, 0.4, 0.999])
def test_an_archive_that_is_cut_off_is_refused(archive: Path, share: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    assert "is no whole ZIP file" in refusal(archive)


def test_a_damaged_tensor_of_a_member_is_named(
    checkpoint_factory: Make, tmp_path: Path, outside: None
) -> None:
    archive = write_zip(checkpoint_factory("text"), tmp_path / "model.zip")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b'"BF16"', b'"XF16"', 1))
    assert "model.zip: model.safetensors: tensor 'model.embed_tokens.weight' has unknown dtype" in refusal(
        archive
    )
