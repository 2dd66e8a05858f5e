"""Parts beside the text model: listed as left out, unless a target has a place for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.parts import AUDIO, TEXT, VISION
from converter.cli.tables import print_report
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from support.vision_target import FILE, NAME, target
from targets.target import find_target
from validation.proof import validate
from validation.report.markdown import render_markdown

Make = Callable[..., Path]
PROJECTION = "model.embed_vision.embedding_projection.weight"


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is found as one of an installed package is: by its entry points."""
    information = tmp_path / "packages" / "with_vision-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: with-vision\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        f"[qatconvert.targets]\n{NAME} = support.vision_target:target\n"
        f"[qatconvert.runtimes]\n{NAME}.llamacpp = validation.runtimes.llamacpp:runner\n"
    )
    monkeypatch.syspath_prepend(information.parent)


@pytest.fixture(scope="module")
def model(checkpoint_factory: Make) -> Path:
    return checkpoint_factory("e2b")


def converted(model: Path, output: Path, *targets: str) -> dict[str, Any]:
    """The report of a conversion that is not validated."""
    conversion = Conversion(str(model), targets, output, validation=None)
    return dict(convert(conversion, warn=lambda line: None).report)


def written(model: Path, directory: Path) -> dict[str, Any]:
    """Arguments of ``validate`` for an artifact with both parts."""
    checkpoint = open_checkpoint(model)
    plan = target.plan(checkpoint, "model", {})
    target.write(checkpoint, plan, directory)
    return {
        "checkpoint": checkpoint,
        "target": NAME,
        "artifact": directory / plan.artifacts[0],
        "plan": plan,
        "positions": 64,
        "same_weights": False,
        "cache": directory,
    }


def test_a_checkpoint_says_what_it_holds_of_every_part(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    sizes = checkpoint.part_sizes
    assert list(sizes) == [TEXT, VISION, AUDIO] or list(sizes) == [TEXT, AUDIO, VISION]
    assert sizes[TEXT].tensors == len(checkpoint.weights)
    assert sizes[TEXT].bytes == checkpoint.stored_bytes
    for part in (VISION, AUDIO):
        own = [item for item in checkpoint.left_out if item.part == part]
        assert len(own) == len(checkpoint.parts[part]) == sizes[part].tensors
        assert sum(item.bytes for item in own) == sizes[part].bytes
    assert PROJECTION in checkpoint.parts[VISION]


def test_a_text_target_leaves_out_every_other_part(model: Path, tmp_path: Path) -> None:
    report = converted(model, tmp_path / "out", "gguf")
    assert {one["of"] for one in report["left_out"]} == {VISION, AUDIO}
    assert "parts" not in report["targets"]["gguf"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {one["part"] for one in manifest["left_out"]} == {VISION, AUDIO}
    assert "parts" not in manifest["targets"]["gguf"]


def test_files_of_a_part_stand_apart_and_are_not_left_out(model: Path, tmp_path: Path) -> None:
    report = converted(model, tmp_path / "out", NAME)
    size = (tmp_path / "out" / FILE).stat().st_size
    assert report["targets"][NAME]["parts"] == {VISION: {"files": [FILE], "bytes": size}}
    assert {one["of"] for one in report["left_out"]} == {AUDIO}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {one["part"] for one in manifest["left_out"]} == {AUDIO}
    assert manifest["targets"][NAME]["parts"][VISION]["files"] == [FILE]
    assert FILE in manifest["targets"][NAME]["files"]
    assert (
        manifest["targets"][NAME]["bytes"] == find_target("gguf").plan(open_checkpoint(model), "m", {}).bytes
    )


def test_a_target_that_has_less_than_another_of_the_run_says_so(model: Path, tmp_path: Path) -> None:
    report = converted(model, tmp_path / "out", "gguf", NAME)
    assert {one["of"] for one in report["left_out"]} == {AUDIO}
    assert {one["of"] for one in report["targets"]["gguf"]["left_out"]} == {VISION}
    assert "left_out" not in report["targets"][NAME]
    assert "- left out: vision encoder" in render_markdown(report)


def test_a_tensor_that_a_target_has_no_place_for_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "stored", "model.vision_tower.")
    report = converted(model, tmp_path / "out", NAME)
    left = [one["part"] for one in report["left_out"] if one["of"] == VISION]
    assert left == ["vision projection"]


def test_an_inspection_shows_what_each_target_has_a_place_for(model: Path) -> None:
    found = inspect(open_model(str(model)), ["gguf", NAME])
    assert found["parts"][VISION]["tensors"] == len(open_checkpoint(model).parts[VISION])
    assert list(found["targets"][NAME]["parts"]) == [VISION]
    assert "parts" not in found["targets"]["gguf"]
    assert {item["part"] for item in found["left_out"]} == {VISION, AUDIO}
    assert {item["part"] for item in inspect(open_model(str(model)), [NAME])["left_out"]} == {AUDIO}


def test_weights_of_a_part_are_read_back_and_judged(model: Path, tmp_path: Path) -> None:
    entry = validate(**written(model, tmp_path / "out"))["entry"]
    part = entry["parts"][VISION]
    numbers = part["weights"]["off_lattice"]
    assert numbers["tensors"] == len(open_checkpoint(model).parts[VISION])
    assert numbers["exact_values"] == numbers["values"] > 0
    assert part["passed"] is True
    assert not {one["name"] for one in part["weights"]["per_tensor"]} & {
        one["name"] for one in entry["weights"]["per_tensor"]
    }


def test_a_wrong_byte_in_the_file_of_a_part_fails_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(model, tmp_path / "out")
    flip(tmp_path / "out" / FILE)
    found = validate(**arguments)
    part = found["entry"]["parts"][VISION]
    assert found["entry"]["passed"] is False
    assert part["passed"] is False
    (failed,) = [gate for gate in part["gates"] if not gate["passed"]]
    assert failed["name"] == "exact_values"
    assert f"the first in {PROJECTION}" in failed["note"]
    assert all(gate["passed"] is not False for gate in found["entry"]["gates"])
    entry = {"artifact": "x", **found["entry"]}
    entry["parts"] = {VISION: {"files": [FILE], "bytes": 1, **part}}
    report = {
        "model": "m",
        "source": {"format": "f"},
        "reference": found["reference"],
        "targets": {NAME: entry},
    }
    print_report(report, None)
    assert "  gate    vision, exact_values failed: " in capsys.readouterr().out
    assert "FAILED: exact\\_values" in render_markdown(report)


def flip(file: Path) -> None:
    """Another sign for the first value of the projection."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[PROJECTION]["data_offsets"][0] + 3] ^= 0x80
    file.write_bytes(content)
