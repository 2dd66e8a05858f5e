"""A checkpoint that changes while it is converted: it is noticed, and nothing is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import CheckpointError
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.opening import open_model
from converter.pipeline.validation import validate
from converter.system.progress import Progress

pytestmark = pytest.mark.slow

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
Change = Callable[[Path], object]


def write_in_place(path: Path) -> None:
    """One bit, at equal size and with the times that it had."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_equal(path: Path) -> None:
    """Another file of the same content, as a tool that writes beside and renames leaves it."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def replace_and_put_back(path: Path) -> None:
    kept = path.with_name("kept")
    path.rename(kept)
    path.write_bytes(b"{}")
    kept.replace(path)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


TOKENIZING = "tokenizing text (transformers)"
CHANGES = [write_in_place, replace_by_equal, replace_and_put_back, remove, cut]


@pytest.fixture
def model(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint_factory("text", shards=3), tmp_path / "model")


def at(stage: str, change: Change, path: Path) -> Progress:
    """A progress that changes a file when a stage is reported for the first time."""
    seen: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        if name == stage and stage not in seen:
            seen.append(name)
            change(path)

    return progress


def refusal(model: Path, out: Path, progress: Progress, **validation: object) -> str:
    settings = None if not validation else {"positions": 8, **validation}
    with pytest.raises(CheckpointError) as caught:
        convert(Conversion(str(model), ["gguf"], out, validation=settings), progress, warn=lambda line: None)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    return str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name", ["config.json", SHARDS[0], SHARDS[2], "tokenizer.json", "generation_config.json"]
)
def test_a_file_that_changes_during_the_writing_is_named(
    model: Path, tmp_path: Path, name: str, change: Change
) -> None:
    told = refusal(model, tmp_path / "out", at("writing gguf", change, model / name))
    assert told == f"{model / name}: changed while it was read: run the same command again"


@pytest.mark.parametrize(
    "stage", ["tokenizing text (transformers)", "reference logits (transformers)", "running llama.cpp"]
)
@pytest.mark.parametrize("name", ["chat_template.jinja", SHARDS[1]])
def test_a_file_that_changes_during_the_proof_is_named(
    model: Path, tmp_path: Path, name: str, stage: str
) -> None:
    told = refusal(model, tmp_path / "out", at(stage, write_in_place, model / name), cache=tmp_path / "cache")
    assert told == f"{model / name}: changed while it was read: run the same command again"


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.model", "model.safetensors"])
def test_a_file_that_appears_is_named_if_anything_would_read_it(
    model: Path, tmp_path: Path, name: str
) -> None:
    told = refusal(
        model, tmp_path / "out", at("writing gguf", lambda path: path.write_text("{}"), model / name)
    )
    assert told.startswith(f"{model / name}: changed")


def test_what_no_one_reads_may_change(model: Path, tmp_path: Path) -> None:
    def touch_others(path: Path) -> None:
        (model / "README.md").write_text("new")
        (model / "LICENSE").write_text("new")
        (model / SHARDS[0]).read_bytes()

    progress = at("writing gguf", touch_others, model)
    conversion = Conversion(str(model), ["gguf"], tmp_path / "out", validation=None)
    assert convert(conversion, progress, warn=lambda line: None).exit_status == 0


def test_a_model_card_that_was_read_is_a_file_of_the_checkpoint(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    progress = at("writing gguf", lambda path: (model / "README.md").write_text("new"), model)
    conversion = Conversion(str(model), ["gguf"], tmp_path / "out", validation=None)
    with pytest.raises(CheckpointError, match=r"README\.md: changed while it was read"):
        convert(conversion, progress, warn=lambda line: None)


def test_a_file_that_changes_between_the_first_look_and_the_opening_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converter.checkpoint import opened as checkpoint

    opened = checkpoint.open_checkpoint

    def slowly(path: Path) -> checkpoint.Checkpoint:
        write_in_place(path / SHARDS[0])
        return opened(path)

    monkeypatch.setattr(checkpoint, "open_checkpoint", slowly)
    assert refusal(model, tmp_path / "out", lambda *call: None).startswith(f"{model / SHARDS[0]}: changed")


def test_logits_of_a_changed_checkpoint_are_not_kept_for_the_one_before(model: Path, tmp_path: Path) -> None:
    intact = shutil.copytree(model, tmp_path / "intact")
    settings = {"positions": 8, "cache": tmp_path / "cache", "same_weights": False}
    refusal(
        model,
        tmp_path / "out",
        at(TOKENIZING, write_in_place, model / SHARDS[0]),
        **settings,
    )
    assert not list((tmp_path / "cache").glob("*.npy"))
    conversion = Conversion(str(intact), ["gguf"], tmp_path / "second", validation=settings)
    assert convert(conversion, warn=lambda line: None).exit_status in (0, 3)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_reference_that_changes_during_a_validation_is_named(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(Conversion(str(model), ["gguf"], out, validation=None), warn=lambda line: None)
    (artifact,) = out.glob("gguf/*.gguf")
    with pytest.raises(CheckpointError, match=rf"{SHARDS[0]}: changed while it was read"):
        validate(
            artifact,
            str(model),
            output_directory=tmp_path / "reports",
            settings={"positions": 8, "cache": tmp_path / "cache"},
            progress=at("running llama.cpp", write_in_place, model / SHARDS[0]),
        )
    assert not (tmp_path / "reports").exists()


def test_an_inspection_of_a_changing_checkpoint_is_refused(model: Path) -> None:
    from converter.pipeline.inspection import inspect

    opened = open_model(str(model))
    with pytest.raises(CheckpointError, match=rf"{SHARDS[0]}: changed while it was read"):
        inspect(opened, ["gguf"], {}, at("reading the lattice", write_in_place, model / SHARDS[0]))
