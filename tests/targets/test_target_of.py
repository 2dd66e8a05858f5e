"""Which target an artifact is of, where several write files of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import UsageError
from support.distributions import write_distribution
from targets.gguf import target as gguf
from targets.target import artifact_of, target_of

#: Two targets whose artifacts are named like another one's, and tell theirs by the first byte.
SOURCE = """
class Target:
    suffix = ".gguf"

    def __init__(self, name, first):
        self.name, self.first = name, first

    def recognises(self, artifact):
        return artifact.read_bytes()[:1] in self.first

one, other = Target("a-one", (b"1", b"3")), Target("other", (b"2", b"3"))
"""


@pytest.fixture
def alike(tmp_path, monkeypatch) -> None:
    group = {"qatconvert.targets": {"a-one": "alike_targets:one", "other": "alike_targets:other"}}
    packages = write_distribution(tmp_path / "packages", "alike", group, {"alike_targets": SOURCE})
    monkeypatch.syspath_prepend(packages)


def file(directory: Path, content: bytes) -> Path:
    path = directory / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "name"), [(b"GGUF", "gguf"), (b"1", "a-one"), (b"2", "other")])
def test_a_file_is_of_the_target_that_recognises_it(content, name, alike, tmp_path):
    assert target_of(file(tmp_path, content)).name == name


@pytest.mark.parametrize(
    ("content", "meant"), [(b"3", "a-one and other"), (b"4", "a-one and gguf and other")]
)
def test_those_that_may_be_meant_are_named_and_one_can_be_chosen(content, meant, alike, tmp_path):
    path = file(tmp_path, content)
    with pytest.raises(UsageError, match=f"the targets {meant} write such files: choose one with --target"):
        target_of(path)
    for name in ("a-one", "gguf"):
        assert target_of(path, name).name == name


def test_a_damaged_file_is_of_the_one_target_that_writes_its_name(tmp_path):
    assert target_of(file(tmp_path, b"no GGUF")) is gguf


def test_a_target_that_writes_no_such_files_is_not_chosen(tmp_path):
    path = file(tmp_path, b"GGUF")
    with pytest.raises(UsageError, match=r"model.gguf: target onnx writes no such files, but \.onnx"):
        target_of(path, "onnx")
    with pytest.raises(UsageError, match="unknown target 'no'"):
        target_of(path, "no")


def test_a_target_chooses_among_the_files_of_a_directory(tmp_path):
    path = file(tmp_path, b"GGUF")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match="holds 2 artifacts"):
        artifact_of(tmp_path)
    assert artifact_of(tmp_path, "gguf") == path
