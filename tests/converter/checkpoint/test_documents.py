"""What stands beside the weights is read once: what is written later is what was checked."""

from __future__ import annotations

import ast
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


ROOMS = ("targets", "validation", "converter/pipeline", "converter/cli", "converter/hub")
#: What opens or reads a checkpoint's files, by the module that has it.
OPENERS = {
    "converter.checkpoint.card": {"read_card"},
    "converter.checkpoint.directory": {"Directory", "KIND"},
    "converter.checkpoint.documents": {"Documents", "evaluation_text"},
    "converter.checkpoint.generation": {"read_generation"},
    "converter.checkpoint.safetensors": {"open_shards", "read_header", "read_index", "has_shards"},
    "converter.checkpoint.tokenizer": {"read_tokenizer"},
}
#: Who asks for a directory, because transformers takes nothing else.
FOR_TRANSFORMERS = {
    "targets/litert/export/skeleton.py",
    "validation/reference/source.py",
    "validation/settings.py",
    "validation/tokenization.py",
}


def modules() -> dict[str, str]:
    """The source of every module that sees checkpoints, by its path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
    }


def opened(source: str) -> set[str]:
    """What of ``OPENERS`` a module imports to be run. What it imports for annotations alone opens nothing."""
    tree = ast.parse(source)
    annotations = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.ImportFrom) and node.module in OPENERS:
            names = {alias.name for alias in node.names} & OPENERS[node.module]
            # a class may be an annotation's too; only a call opens anything
            found |= {name for name in names if not name[0].isupper() or name in called}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in OPENERS}
    return found


@pytest.mark.slow
def test_only_the_checkpoints_own_package_opens_its_files() -> None:
    assert {path: found for path, source in modules().items() if (found := opened(source))} == {}


def test_a_directory_is_asked_for_by_what_hands_it_to_transformers_alone() -> None:
    asking = {path for path, source in modules().items() if "source.directory()" in source}
    assert asking == FOR_TRANSFORMERS


def test_no_one_else_reads_files_by_way_of_the_directory() -> None:
    found = [
        f"{path}: {line.strip()}"
        for path, source in modules().items()
        for line in source.splitlines()
        if READS.search(line)
    ]
    assert not found


#: Files of a checkpoint by way of its directory, or of the file that its name led to.
READS = re.compile(
    r"checkpoint\.path\b|\b(source|place|snapshot)\.path / \""
    r"|\.directory\(\)( /|\.(iterdir|glob|joinpath|open))"
    r"|documents\.path\(.*\)\.(read|open|exists)|source\.(head|shard|tensors)\("
)


def test_the_search_finds_what_it_looks_for() -> None:
    for line in (
        "read_sampling(checkpoint.path)",
        "(model.checkpoint.path / name).exists()",
        'read_object(checkpoint.source.directory() / "config.json")',
        "documents.path(TOKENIZER).read_bytes()",
        'read_object(place.path / "config.json")',
        'checkpoint.source.head("config.json", 10)',
    ):
        assert READS.search(line)
    assert not READS.search("Model(checkpoint.source.directory(), left_out)")
    imported = "from converter.checkpoint.documents import Documents\n"
    assert opened(f"{imported}Documents(directory)") == {"Documents"}
    assert not opened(f"{imported}def section(documents: Documents) -> None: ...")
    assert opened("def f():\n    from converter.checkpoint.safetensors import read_index") == {"read_index"}
    assert opened("import converter.checkpoint.card") == {"converter.checkpoint.card"}
    assert not opened("if TYPE_CHECKING:\n    from converter.checkpoint.tokenizer import read_tokenizer")
