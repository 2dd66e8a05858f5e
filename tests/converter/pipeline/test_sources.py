"""A model in another kind of source than a directory is converted, proven and verified as any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.errors import CheckpointError, DestinationError
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from converter.pipeline.rebuild import rebuild
from converter.pipeline.validation import validate
from converter.pipeline.verification import verify
from converter.system.digests import sha256
from support.outside import archive_source, register

Make = Callable[..., Path]
write_zip = archive_source().write_zip
Change = Callable[[Path], object]


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What ``tests/outside`` brings is registered."""
    packages = tmp_path_factory.mktemp("outside")
    register(packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        yield


@pytest.fixture(scope="module")
def model(checkpoint_factory: Make) -> Path:
    return checkpoint_factory("text", shards=2)


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    return write_zip(model, tmp_path / f"{model.name}.zip")


def converted(model: Path, output: Path, **validation: object) -> dict[str, Any]:
    """The report of a conversion to GGUF, which is validated by settings if there are any."""
    conversion = Conversion(str(model), ["gguf"], output, validation=validation or None)
    return dict(convert(conversion, warn=lambda line: None).report)


def test_the_artifact_is_the_directorys_byte_for_byte(model: Path, archive: Path, tmp_path: Path) -> None:
    converted(model, tmp_path / "one")
    converted(archive, tmp_path / "other")
    (one,), (other,) = (list((tmp_path / name / "gguf").iterdir()) for name in ("one", "other"))
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def test_the_manifest_names_the_one_file_and_verification_converts_it_again(
    archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    converted(archive, out)
    source = json.loads((out / "manifest.json").read_text())["source"]
    assert source["path"] == archive.name
    assert source["files"] == [
        {
            "path": archive.name,
            "bytes": archive.stat().st_size,
            "sha256": sha256(archive),
            "verified": None,
        }
    ]
    found = verify(out)
    assert found.exit_status == 0
    again = rebuild(found, reference=str(archive))
    assert not again.findings
    assert any(name.endswith(".gguf") for name in again.same)
    change_a_bit(archive)
    with pytest.raises(
        CheckpointError, match=rf"is not the source that was converted: {archive.name} differs"
    ):
        rebuild(found, reference=str(archive))


def test_the_artifact_is_proven_against_it(archive: Path, tmp_path: Path) -> None:
    settings = {"positions": 64, "cache": tmp_path / "cache"}
    entry = converted(archive, tmp_path / "out", **settings)["targets"]["gguf"]
    assert entry["passed"] is True
    assert entry["weights"]["exact_fraction"] == 1
    assert entry["logits"]["positions"] == 64
    (artifact,) = (tmp_path / "out" / "gguf").iterdir()
    report = validate(artifact, str(archive), settings=settings).report
    assert report["targets"]["gguf"]["passed"] is True


def test_it_is_inspected(archive: Path, model: Path) -> None:
    found, expected = inspect(open_model(str(archive)), ["gguf"]), inspect(open_model(str(model)), ["gguf"])
    assert found["source"].pop("path") == archive.name
    assert expected["source"].pop("path") == model.name
    assert found["source"].pop("files") == {"read": 1, "compared": 0}
    del expected["source"]["files"]
    assert found == expected


def test_it_is_not_replaced_by_what_is_made_of_it(archive: Path) -> None:
    conversion = Conversion(str(archive), ["gguf"], archive.parent, force=True, validation=None)
    with pytest.raises(DestinationError, match="holds the checkpoint itself"):
        convert(conversion, warn=lambda line: None)


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [change_a_bit, remove])
@pytest.mark.parametrize("stage", ["writing gguf", "reference logits (transformers)"])
def test_one_that_changes_meanwhile_is_named_and_nothing_is_left(
    archive: Path, tmp_path: Path, stage: str, change: Change
) -> None:
    done: list[str] = []

    def progress(name: str, count: int, total: int) -> None:
        if name == stage and not done:
            done.append(name)
            change(archive)

    settings = {"positions": 8, "cache": tmp_path / "cache"} if stage.startswith("reference") else None
    conversion = Conversion(str(archive), ["gguf"], tmp_path / "out", validation=settings)
    with pytest.raises(CheckpointError) as caught:
        convert(conversion, progress, warn=lambda line: None)
    assert str(caught.value) == f"{archive}: changed while it was read: run the same command again"
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_lies_beside_it_may_change(archive: Path, tmp_path: Path) -> None:
    def progress(name: str, count: int, total: int) -> None:
        (archive.parent / "config.json").write_text(name)
        (archive.parent / "other.zip").write_text(name)

    conversion = Conversion(str(archive), ["gguf"], tmp_path / "out", validation=None)
    assert convert(conversion, progress, warn=lambda line: None).exit_status == 0
