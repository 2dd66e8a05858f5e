"""Parts beside the text model: listed as left out, unless a target has a place for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.parts import AUDIO, DRAFTER, TEXT, VISION
from converter.cli.tables import print_report
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from support import drafted
from support.distributions import write_distribution
from support.part_target import PartTarget, audio, drafter, vision
from targets.target import find_target
from validation.proof import validate
from validation.report.markdown import render_markdown

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
TARGETS = {VISION: vision, AUDIO: audio, DRAFTER: drafter}
#: A matrix of each part.
PROJECTIONS = {
    VISION: "model.embed_vision.embedding_projection.weight",
    AUDIO: "model.embed_audio.embedding_projection.weight",
    DRAFTER: drafted.PROJECTION,
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Targets and the family are found as those of an installed package are: by their entry points."""
    names = {target.name: f"support.part_target:{part}" for part, target in TARGETS.items()}
    runtimes = {f"{name}.llamacpp": "validation.runtimes.llamacpp:runner" for name in names}
    groups = {"qatconvert.targets": names, "qatconvert.runtimes": runtimes, **drafted.ENTRY_POINTS}
    packages = write_distribution(tmp_path_factory.mktemp("packages"), "with-parts", groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        yield


@pytest.fixture(scope="module")
def model(checkpoint_factory: Make, registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every part."""
    return drafted.write_drafted(checkpoint_factory("e2b"), tmp_path_factory.mktemp("drafted") / "model")


@pytest.fixture(params=TARGETS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(part: str) -> PartTarget:
    """The one that stores the part."""
    return TARGETS[part]


def converted(model: Path, output: Path, *targets: str) -> dict[str, Any]:
    """The report of a conversion that is not validated."""
    conversion = Conversion(str(model), targets, output, validation=None)
    return dict(convert(conversion, warn=lambda line: None).report)


def written(model: Path, directory: Path, target: PartTarget) -> dict[str, Any]:
    """Arguments of ``validate`` for an artifact with both parts."""
    checkpoint = open_checkpoint(model)
    plan = target.plan(checkpoint, "model", {})
    target.write(checkpoint, plan, directory)
    return {
        "checkpoint": checkpoint,
        "target": target.name,
        "artifact": directory / plan.artifacts[0],
        "plan": plan,
        "positions": 64,
        "same_weights": False,
        "cache": directory,
    }


def test_a_checkpoint_says_what_it_holds_of_every_part(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    sizes = checkpoint.part_sizes
    assert next(iter(sizes)) == TEXT
    assert sizes.keys() == {TEXT, *TARGETS}
    assert sizes[TEXT].tensors == len(checkpoint.weights)
    assert sizes[TEXT].bytes == checkpoint.stored_bytes
    for part, projection in PROJECTIONS.items():
        own = [item for item in checkpoint.left_out if item.part == part]
        assert len(own) == len(checkpoint.parts[part]) == sizes[part].tensors
        assert sum(item.bytes for item in own) == sizes[part].bytes
        assert projection in checkpoint.parts[part]


def test_a_text_target_leaves_out_every_other_part(model: Path, tmp_path: Path) -> None:
    report = converted(model, tmp_path / "out", "gguf")
    assert {one["of"] for one in report["left_out"]} == {VISION, AUDIO, DRAFTER}
    drafts = [one for one in report["left_out"] if one["of"] == DRAFTER]
    assert {one["part"]: one["tensors"] for one in drafts} == {"drafter projection": 2, "drafter layers": 2}
    assert "parts" not in report["targets"]["gguf"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {one["part"] for one in manifest["left_out"]} == {VISION, AUDIO, DRAFTER}
    assert "parts" not in manifest["targets"]["gguf"]


def test_files_of_a_part_stand_apart_and_are_not_left_out(
    model: Path, tmp_path: Path, part: str, target: PartTarget
) -> None:
    report = converted(model, tmp_path / "out", target.name)
    size = (tmp_path / "out" / target.file).stat().st_size
    entry = report["targets"][target.name]
    assert entry["parts"] == {part: {"files": [target.file], "bytes": size}}
    others = {VISION, AUDIO, DRAFTER} - {part}
    assert {one["of"] for one in report["left_out"]} == others
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {one["part"] for one in manifest["left_out"]} == others
    own = manifest["targets"][target.name]
    assert own["parts"][part]["files"] == [target.file]
    assert target.file in own["files"]
    assert own["bytes"] == find_target("gguf").plan(open_checkpoint(model), "m", {}).bytes


def test_a_target_that_has_less_than_another_of_the_run_says_so(
    model: Path, tmp_path: Path, part: str, target: PartTarget
) -> None:
    report = converted(model, tmp_path / "out", "gguf", target.name)
    assert {one["of"] for one in report["left_out"]} == {VISION, AUDIO, DRAFTER} - {part}
    assert {one["of"] for one in report["targets"]["gguf"]["left_out"]} == {part}
    assert "left_out" not in report["targets"][target.name]
    (first, *_) = report["targets"]["gguf"]["left_out"]
    assert f"\n- left out: {first['part']} ({first['tensors']} tensor" in render_markdown(report)


def test_a_tensor_that_a_target_has_no_place_for_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "stored", "model.vision_tower.")
    report = converted(model, tmp_path / "out", vision.name)
    left = [one["part"] for one in report["left_out"] if one["of"] == VISION]
    assert left == ["vision projection"]


def test_an_inspection_shows_what_each_target_has_a_place_for(
    model: Path, part: str, target: PartTarget
) -> None:
    every = {VISION, AUDIO, DRAFTER}
    found = inspect(open_model(str(model)), ["gguf", target.name])
    assert found["parts"][part]["tensors"] == len(open_checkpoint(model).parts[part])
    assert list(found["targets"][target.name]["parts"]) == [part]
    assert "parts" not in found["targets"]["gguf"]
    assert {item["part"] for item in found["left_out"]} == every
    alone = inspect(open_model(str(model)), [target.name])
    assert {item["part"] for item in alone["left_out"]} == every - {part}


def test_weights_of_a_part_are_read_back_and_judged(
    model: Path, tmp_path: Path, part: str, target: PartTarget
) -> None:
    entry = validate(**written(model, tmp_path / "out", target))["entry"]
    found = entry["parts"][part]
    numbers = found["weights"]["off_lattice"]
    assert numbers["tensors"] == len(open_checkpoint(model).parts[part])
    assert numbers["exact_values"] == numbers["values"] > 0
    assert found["passed"] is True
    assert not {one["name"] for one in found["weights"]["per_tensor"]} & {
        one["name"] for one in entry["weights"]["per_tensor"]
    }


def test_a_wrong_byte_in_the_file_of_a_part_fails_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, target: PartTarget
) -> None:
    arguments = written(model, tmp_path / "out", target)
    flip(tmp_path / "out" / target.file, PROJECTIONS[part])
    found = validate(**arguments)
    own = found["entry"]["parts"][part]
    assert found["entry"]["passed"] is False
    assert own["passed"] is False
    (failed,) = [gate for gate in own["gates"] if not gate["passed"]]
    assert failed["name"] == "exact_values"
    assert f"the first in {PROJECTIONS[part]}" in failed["note"]
    assert all(gate["passed"] is not False for gate in found["entry"]["gates"])
    entry = {"artifact": "x", **found["entry"]}
    entry["parts"] = {part: {"files": [target.file], "bytes": 1, **own}}
    report = {
        "model": "m",
        "source": {"format": "f"},
        "reference": found["reference"],
        "targets": {target.name: entry},
    }
    print_report(report, None)
    assert f"  gate    {part}, exact_values failed: " in capsys.readouterr().out
    assert "FAILED: exact\\_values" in render_markdown(report)


def flip(file: Path, name: str) -> None:
    """Another sign for the first value of a tensor."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[name]["data_offsets"][0] + 3] ^= 0x80
    file.write_bytes(content)
