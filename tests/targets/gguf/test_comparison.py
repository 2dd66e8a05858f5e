"""A GGUF beside its checkpoint: each change is a difference, and what was converted has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import CheckpointFactory

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.errors import CheckpointError
from support.plans import plan_of
from support.tampering import (
    GGUF_DESCRIPTIVE,
    GgufFile,
    Tampering,
    applied,
    byte_flips,
    gguf_tamperings,
    gguf_value_tamperings,
)
from targets.gguf import target
from targets.target import Difference

pytestmark = pytest.mark.slow

Split = tuple[Checkpoint, Path, tuple[str, ...]]

FILE = "gguf/model-q4_0.gguf"
OPTIONS = {"license": "apache-2.0", "repo": "owner/name", "revision": "0" * 40}


def differences(artifact: Path, checkpoint: Checkpoint, **options: object) -> list[Difference]:
    """Differences of an artifact that was named ``model`` and written by ``OPTIONS``, or the given ones."""
    plan = plan_of(target, checkpoint, options or OPTIONS)
    return list(target.differences(artifact, checkpoint, plan))


@pytest.fixture(scope="module")
def converted(demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with ``gguf`` and ``ollama`` of the shipped checkpoint."""
    output = tmp_path_factory.mktemp("converted")
    target.write(demo, target.plan(demo, "model", OPTIONS), output)
    return output


@pytest.mark.parametrize(
    ("variant", "scheme", "options"),
    [
        ("gemma3", "max7", {}),
        ("e2b", "max7", {"license": "apache-2.0", "repo": "a/b", "revision": "main"}),
        ("e2b", "max7", {"split_max_size": "100K"}),
        ("26b-a4b", "max7", {}),
        ("e4b", "latent", {"off_lattice": "q8_0"}),
        ("e4b", "latent", {"off_lattice": "bf16"}),
        ("e4b", "latent", {"off_lattice": "f16"}),
        ("e4b", "latent", {"off_lattice": "q4_0"}),
    ],
)
def test_what_was_converted_has_no_difference(
    checkpoint_factory: CheckpointFactory,
    tmp_path: Path,
    variant: str,
    scheme: str,
    options: dict[str, object],
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory(variant, scheme))
    plan = target.plan(checkpoint, "model", options)
    target.write(checkpoint, plan, tmp_path)
    artifact = tmp_path / plan.artifacts[0]
    assert list(target.differences(artifact, checkpoint, plan)) == []
    inferred = target.infer_options(artifact, checkpoint)
    again = target.plan(checkpoint, str(inferred["name"]), inferred)
    assert list(target.differences(artifact, checkpoint, again)) == []
    assert {**again.options, "split_max_size": None} == {**plan.options, "split_max_size": None}


@pytest.mark.slow
def test_every_change_of_a_key_or_of_the_tensors_is_a_difference(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    tamperings = list(gguf_tamperings(converted, FILE))
    assert [one.name for one in tamperings if not caught(one, converted, demo, tmp_path / "copy")] == []
    assert len(tamperings) > 300


def test_one_wrong_byte_in_each_tensor_is_a_difference_of_each(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    tensors = {name for name, *_ in GgufFile.read(converted / FILE).tensors}
    by_kind: dict[str, list[Tampering]] = {}
    for tampering in gguf_value_tamperings(converted, FILE):
        by_kind.setdefault(tampering.name.partition(": ")[2], []).append(tampering)
    assert set(by_kind) == {"scale", "code", "sign", "scale of zeros"}
    for kind, tamperings in by_kind.items():
        copy = applied(tamperings[0], converted, tmp_path / "copy")
        for tampering in tamperings[1:]:
            tampering.change(copy)
        named = {one.where.removeprefix("tensor ") for one in differences(copy / FILE, demo) if one.deciding}
        assert named == {tampering.name.partition(": ")[0] for tampering in tamperings}
        assert named == tensors or kind == "scale of zeros"


@pytest.mark.slow
def test_every_flipped_byte_is_a_difference(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    flips = byte_flips(converted, FILE, 80)
    assert [one.name for one in flips if not caught(one, converted, demo, tmp_path / "copy")] == []


def caught(tampering: Tampering, source: Path, checkpoint: Checkpoint, scratch: Path) -> bool:
    copy = applied(tampering, source, scratch)
    try:
        found = differences(copy / FILE, checkpoint)
    except CheckpointError:
        return True
    return bool(found) and (tampering.describes or any(one.deciding for one in found))


def deciding(found: list[Difference]) -> set[str]:
    return {one.where for one in found if one.deciding}


def test_keys_that_only_describe_the_model_do_not_decide(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    older = applied(Tampering("none", lambda copy: None), converted, tmp_path / "copy") / FILE
    parsed = GgufFile.read(older)
    parsed.keys = [(key, value) for key, value in parsed.keys if key not in GGUF_DESCRIPTIVE]
    parsed.keys.append(("general.author", b"\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00x"))
    parsed.keys.reverse()
    parsed.tensors.reverse()
    parsed.write(older)
    found = differences(older, demo)
    assert {one.where for one in found} >= {"key general.name", "key general.license", "key general.author"}
    assert deciding(found) == set()


def test_a_difference_names_the_key_and_both_values(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    tampering = next(
        one for one in gguf_tamperings(converted, FILE) if one.name == "tokenizer.ggml.tokens: last item"
    )
    copy = applied(tampering, converted, tmp_path / "copy")
    (found,) = differences(copy / FILE, demo)
    last = len(demo.tokenizer.tokens) - 1
    assert found.where == f"key tokenizer.ggml.tokens[{last}]"
    assert found.expected == repr(demo.tokenizer.tokens[last])
    assert found.found != found.expected


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("PARAMETER top_k 64", "PARAMETER top_k 1", "PARAMETER"),
        ("RENDERER gemma4", "RENDERER gemma3", "RENDERER"),
        ("PARSER gemma4", "PARSER gemma4\nSYSTEM Lie.", "SYSTEM"),
        ("FROM ../gguf/model", "FROM ../gguf/other", "FROM"),
        ("FROM", "FORM", None),
        ("PARAMETER num_ctx", 'MESSAGE user "hello"\nPARAMETER num_ctx', "MESSAGE"),
    ],
)
def test_the_modelfile_beside_the_artifact_is_compared(
    converted: Path, demo: Checkpoint, tmp_path: Path, old: str, new: str, where: str | None
) -> None:
    def change(copy: Path) -> None:
        text = (copy / "ollama/Modelfile").read_text()
        assert old in text
        (copy / "ollama/Modelfile").write_text(text.replace(old, new, 1))

    copy = applied(Tampering("Modelfile", change), converted, tmp_path / "copy")
    expected = "ollama/Modelfile" if where is None else f"ollama/Modelfile: {where}"
    assert deciding(differences(copy / FILE, demo)) == {expected}


def test_a_modelfile_that_follows_a_renamed_artifact_is_right(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    def rename(copy: Path) -> None:
        (copy / FILE).rename(copy / "gguf/mine.gguf")
        path = copy / "ollama/Modelfile"
        path.write_text(path.read_text().replace("model-q4_0.gguf", "mine.gguf"))

    copy = applied(Tampering("renamed", rename), converted, tmp_path / "copy")
    assert differences(copy / "gguf/mine.gguf", demo) == []


@pytest.fixture(scope="module")
def split(checkpoint_factory: CheckpointFactory, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """A small model in several files: its checkpoint, the directory, and the files' names."""
    checkpoint = open_checkpoint(checkpoint_factory("e2b"))
    output = tmp_path_factory.mktemp("split")
    plan = target.plan(checkpoint, "model", {"split_max_size": "200K"})
    target.write(checkpoint, plan, output)
    return checkpoint, output, plan.artifacts


def test_another_size_of_the_files_of_a_split_model_is_no_difference(split: Split) -> None:
    checkpoint, output, files = split
    found = differences(output / files[0], checkpoint, split_max_size="1M")
    assert [one for one in found if not one.where.startswith("ollama/")] == []


def test_every_wrong_key_of_a_split_model_is_a_difference(split: Split, tmp_path: Path) -> None:
    checkpoint, output, files = split
    assert len(files) > 2
    for number, file in ((0, files[0]), (len(files) - 1, files[-1])):
        keys = [key for key, _ in GgufFile.read(output / file).keys]
        for tampering in gguf_tamperings(output, file):
            if tampering.name.startswith("split.") or (number and tampering.name.partition(" ")[0] in keys):
                copy = applied(tampering, output, tmp_path / "copy")
                found = differences(copy / files[0], checkpoint, split_max_size="200K")
                assert deciding(found), tampering.name


def test_a_file_that_ollama_would_take_for_a_part_of_a_split_model_is_a_difference(
    split: Split, tmp_path: Path
) -> None:
    checkpoint, output, files = split
    add = Tampering("added", lambda copy: (copy / "gguf/adapter.gguf").write_bytes(b"GGUF"))
    copy = applied(add, output, tmp_path / "copy")
    found = differences(copy / files[0], checkpoint, split_max_size="200K")
    assert deciding(found) == {"gguf/adapter.gguf"}


def test_the_rule_of_a_right_tensor_gives_its_values(demo: Checkpoint, converted: Path) -> None:
    for name, stored in target.describe(converted / FILE, demo).items():
        rows = demo.weights[name].rows
        assert stored.rule is not None
        np.testing.assert_array_equal(stored.rule(0, rows), stored.floats(0, rows))


def test_the_rule_holds_for_norms_with_an_offset_and_types_off_the_lattice(
    checkpoint_factory: CheckpointFactory, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("gemma3", "latent"))
    plan = target.plan(checkpoint, "model", {})
    target.write(checkpoint, plan, tmp_path)
    stored = target.describe(tmp_path / plan.artifacts[0], checkpoint)
    assert {one.type for one in stored.values()} == {"F32", "Q8_0"}
    for name, one in stored.items():
        stop = checkpoint.weights[name].rows
        assert one.rule is not None
        np.testing.assert_array_equal(one.rule(stop // 2, stop), one.floats(stop // 2, stop))


def test_the_stage_counts_the_bytes_of_the_checkpoint(converted: Path, demo: Checkpoint) -> None:
    seen: list[tuple[str, int, int]] = []
    plan = target.plan(demo, "model", OPTIONS)
    target.differences(converted / FILE, demo, plan, lambda *told: seen.append(told))
    assert {stage for stage, *_ in seen} == {"comparing gguf"}
    assert seen[-1][1:] == (demo.stored_bytes, demo.stored_bytes)
