"""What ``targets.target.Target`` promises, kept by every registered target for every stored form."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint, open_description
from converter.errors import CheckpointError
from support.forms import MAKERS, VARIANT
from support.outside import BROUGHT
from targets.target import Plan, Target, artifact_of, find_target, known_targets, target_of
from validation.exactness import measure

pytestmark = pytest.mark.slow

Convert = Callable[..., object]
#: An older conversion of a model of the same shapes, with scales of another scheme.
OTHER = "learned"


@pytest.fixture(params=(*known_targets(), *BROUGHT["qatconvert.targets"]))
def target(request: pytest.FixtureRequest, form_factory: Convert) -> Target:
    """Every registered target, and the one of ``tests/outside``, which is registered with its form."""
    return find_target(request.param)


@pytest.fixture(scope="module", params=MAKERS)
def source(request, form_factory) -> Path:
    """A checkpoint of random weights in a stored form."""
    return form_factory(request.param)


@pytest.fixture
def made(target, convert, source):
    """The checkpoint, converted once."""
    return convert(source, target.name)


@pytest.fixture
def copy(made, target, tmp_path) -> Path:
    """The artifact in a directory of the test's own."""
    for file in target.files(made.artifact):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / made.artifact.name


def digests(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def test_a_plan_names_every_weight_and_files_below_the_output(target, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = target.plan(made.checkpoint, "model", {})
    assert not list(tmp_path.iterdir())
    assert {tensor.weight for tensor in plan.tensors} - {None} == made.checkpoint.weights.keys()
    for name in (*plan.artifacts, *plan.companions):
        assert not Path(name).is_absolute()
        assert ".." not in Path(name).parts
    assert plan.artifacts[0].endswith(target.suffix)
    assert plan == target.plan(made.checkpoint, "model", {})


def test_what_is_written_is_what_was_planned(target, made):
    directory = made.artifact
    for _ in Path(made.plan.artifacts[0]).parts:
        directory = directory.parent
    planned = {directory / name for name in (*made.plan.artifacts, *made.plan.companions)}
    assert {file for file in directory.rglob("*") if file.is_file()} == planned
    assert {directory / name for name in made.plan.artifacts} <= set(target.files(made.artifact))
    sizes = {tensor.weight: tensor.bytes for tensor in made.plan.tensors if tensor.weight}
    stored = target.describe(made.artifact, made.checkpoint)
    assert {name: tensor.bytes for name, tensor in stored.items()} == sizes
    formats = {tensor.weight: tensor.type for tensor in made.plan.tensors if tensor.weight}
    assert {name: tensor.type for name, tensor in stored.items()} == formats


def test_weights_read_back_are_the_checkpoints_and_by_the_stated_rule(target, made):
    stored = target.describe(made.artifact, made.checkpoint)
    exact = {tensor.weight: tensor.exact for tensor in made.plan.tensors if tensor.weight}
    found = measure(made.checkpoint, stored)
    assert found.exact_fraction == 1.0
    assert all(exact.values())
    for name, tensor in stored.items():
        weight = made.checkpoint.weights[name]
        assert tensor.rule is not None
        stop = min(weight.rows, 3)
        rows = tensor.floats(0, stop)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, tensor.rule(0, stop)), name


def test_the_same_checkpoint_gives_the_same_bytes_and_a_stage_that_ends(target, made, tmp_path):
    told: list[tuple[str, int, int]] = []
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        target.write(
            made.checkpoint,
            made.plan,
            directory,
            lambda stage, done, total: told.append((stage, done, total)),
        )
    assert digests(first) == digests(second)
    written = [(done, total) for stage, done, total in told if stage == f"writing {target.name}"]
    assert written[-1][0] == written[-1][1] > 0
    half = written[: written.index(written[-1]) + 1]
    assert [done for done, _ in half] == sorted(done for done, _ in half)


def test_an_artifact_is_found_and_tells_its_own_options(target, made):
    assert target_of(made.artifact).name == target.name
    assert artifact_of(made.artifact) == made.artifact
    assert target.recognises(made.artifact)
    options = target.infer_options(made.artifact, made.checkpoint)
    again: Plan = target.plan(made.checkpoint, "model", options)
    assert again.tensors == made.plan.tensors
    assert not list(target.differences(made.artifact, made.checkpoint, again))


def test_a_file_of_its_name_with_other_content_is_not_recognised(target, tmp_path):
    for content in (b"", b"{}", bytes(4096)):
        path = tmp_path / f"other{target.suffix}"
        path.write_bytes(content)
        assert not target.recognises(path), content
    assert not target.recognises(tmp_path / f"missing{target.suffix}")


def test_an_artifact_of_other_weights_differs_in_what_decides(target, made, checkpoint_factory):
    other = open_checkpoint(checkpoint_factory(VARIANT, OTHER))
    found = target.differences(made.artifact, other, target.plan(other, "model", {}))
    assert any(difference.deciding for difference in found)


def test_a_change_of_any_weight_shows(target, made, copy):
    """One byte in the middle of the largest file of weights."""
    file = max(target.files(copy), key=lambda one: one.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x11
    file.write_bytes(content)
    assert list(target.differences(copy, made.checkpoint, made.plan))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_an_artifact_that_is_cut_off_is_named_and_not_read(target, made, copy, share):
    content = copy.read_bytes()
    copy.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=copy.name):
        target.describe(copy, made.checkpoint)
    with pytest.raises(CheckpointError, match=copy.name):
        list(target.differences(copy, made.checkpoint, made.plan))


def test_a_missing_file_is_named(target, made, copy):
    for file in target.files(copy)[1:]:
        if str(file.name) in {Path(name).name for name in made.plan.artifacts}:
            file.unlink()
            with pytest.raises(CheckpointError, match=file.name):
                target.files(copy)
    copy.unlink()
    with pytest.raises(CheckpointError, match=copy.name):
        target.describe(copy, made.checkpoint)


def test_every_choice_can_be_made_of_the_one_artifact_or_is_written(target, made, copy):
    for choice in target.choices(made.plan):
        plan = target.written(made.plan, choice)
        before = digests(copy.parent)
        target.choose(copy, choice)
        after = digests(copy.parent)
        assert {name for name in before if before[name] != after[name]} <= {copy.name}
        target.choose(copy, choice)
        assert digests(copy.parent) == after
        assert plan.target == target.name


def test_a_model_is_judged_without_its_weights_as_with_them(target, made):
    description = open_description(made.checkpoint.source.directory())
    assert not description.weights
    target.check({})
    target.check_model(description, {})
