"""What stands beside the weights is read once: what is written later is what was checked."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError
from converter.filenames import TOKENIZER
from converter.system.digests import Digests, sha256
from targets.onnx.side_files import generation_files

ROOT = Path(__file__).parents[3]


def test_a_small_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    documents = Documents(Directory(tmp_path))
    assert documents.settings("a.json").values == {"a": 1}
    path.unlink()
    assert "a.json" in documents
    assert documents.content("a.json") == b'{"a": 1}'


def test_a_large_file_is_not_kept_and_must_stay_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (2 << 20))
    documents = Documents(Directory(tmp_path))
    for _ in range(2):
        assert documents.content("a.txt") == b"a" * (2 << 20)
    path.write_bytes(b"a" * (2 << 20) + b"b")
    with pytest.raises(CheckpointError, match=r"a\.txt: changed after it was read"):
        documents.content("a.txt")
    path.write_bytes(b"short now")
    with pytest.raises(CheckpointError, match=r"a\.txt: changed after it was read"):
        documents.content("a.txt")


def test_an_absent_file_is_empty_settings_and_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    documents = Documents(Directory(tmp_path))
    assert documents.optional("a.json").values == {}
    os.symlink(tmp_path / "nowhere", tmp_path / "b.json")
    with pytest.raises(CheckpointError, match=r"b\.json: cannot be read"):
        documents.optional("b.json")
    (tmp_path / "c.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"c\.json: not UTF-8 at byte 0"):
        documents.settings("c.json")


def test_what_a_target_copies_is_what_was_checked(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint_factory("text"), tmp_path / "model")
    checkpoint = open_checkpoint(model)
    before = generation_files(checkpoint)
    for name in ("generation_config.json", "tokenizer_config.json", TOKENIZER, "config.json"):
        (model / name).write_text("{")
    assert generation_files(checkpoint) == before


def test_a_directory_is_a_source_with_digests(checkpoint_factory: Callable[..., Path]) -> None:
    model = checkpoint_factory("text")
    source = open_checkpoint(model).source
    assert isinstance(source, Directory)
    assert (source.kind, str(source), source.directory()) == ("directory", str(model), model)
    digests = Digests()
    digests.add(source.files)
    found = {entry["path"]: entry["sha256"] for entry in source.entries(digests)}
    assert found == {path.name: sha256(path) for path in model.iterdir()}


@pytest.mark.parametrize("package", ["targets", "validation", "converter/pipeline", "converter/cli"])
def test_only_the_checkpoints_own_package_reads_its_directory(package: str) -> None:
    """Others ask the source for one, where a program takes nothing else, and write nothing by its files."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if READS.search(line)
    ]
    assert not found


#: Files of a checkpoint by way of its directory.
READS = re.compile(
    r"checkpoint\.path\b|source\.path / |\.directory\(\) / |source\.directory\(\)\.(iterdir|glob|joinpath)"
    r"|documents\.path\(.*\)\.(read|open|exists)"
)


def test_the_search_finds_what_it_looks_for() -> None:
    for line in (
        "read_sampling(checkpoint.path)",
        "(model.checkpoint.path / name).exists()",
        'read_object(checkpoint.source.directory() / "config.json")',
        "documents.path(TOKENIZER).read_bytes()",
    ):
        assert READS.search(line)
    assert not READS.search("Model(checkpoint.source.directory(), left_out)")
