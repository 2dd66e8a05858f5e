"""Packed weights of a part are offered to targets as codes and scales, where the stored form reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.parts import VISION
from converter.checkpoint.weight import Lattice
from converter.pipeline.conversion import Conversion, convert
from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from support.distributions import write_distribution
from support.outside import packed_forms, register
from support.part_target import vision
from validation.proof import validate

Make = Callable[..., Path]
Write = Callable[[Mapping[str, NDArray[Any]]], Path]
MATRIX = "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"
CLIP = "model.vision_tower.encoder.layers.0.mlp.up_proj.input_max"
NORM = "model.vision_tower.encoder.layers.0.input_layernorm.weight"
(FORM,) = packed_forms().values()
GROUP = FORM.GROUP
ROWS, COLUMNS = 64, 2 * GROUP


def codes() -> NDArray[np.int8]:
    return np.random.default_rng(1).integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)


def scales() -> NDArray[np.float16]:
    return np.random.default_rng(2).uniform(0.001, 0.01, (ROWS, COLUMNS // GROUP)).astype(np.float16)


#: A vision encoder's tensors in the packed form: a packed matrix, and numbers.
TENSORS: Mapping[str, NDArray[Any]] = {
    f"{MATRIX}_packed": FORM.packed(codes()),
    f"{MATRIX}_scale": scales(),
    CLIP: np.float32(np.inf).reshape(()),
    NORM: np.ones(32, np.float32),
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    packages = tmp_path_factory.mktemp("packages")
    register(packages)
    write_distribution(
        packages,
        "with-vision",
        {
            "qatconvert.targets": {vision.name: "support.part_target:vision"},
            "qatconvert.runtimes": {f"{vision.name}.llamacpp": "validation.runtimes.llamacpp:runner"},
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        yield


@pytest.fixture
def write(checkpoint_factory: Make, tmp_path: Path) -> Write:
    """``write(tensors)`` gives a packed checkpoint with these tensors of a vision encoder."""

    def made(tensors: Mapping[str, NDArray[Any]]) -> Path:
        source = checkpoint_factory("31b")
        return FORM.write_packed(
            source, tmp_path / "model", {**FORM.tensors_of(source, "float16"), **tensors}
        )

    return made


def names(checkpoint: Checkpoint) -> set[str]:
    return set(checkpoint.parts.get(VISION, {}))


def test_a_packed_matrix_is_one_weight_with_its_codes_and_scales(write: Write) -> None:
    checkpoint = open_checkpoint(write(TENSORS))
    assert names(checkpoint) == {MATRIX, CLIP, NORM}
    weight = checkpoint.parts[VISION][MATRIX]
    assert (weight.name, weight.shape, weight.lattice) == (MATRIX, (ROWS, COLUMNS), Lattice(4, GROUP))
    assert weight.is_packed
    rows = weight.codes(0, ROWS)  # type: ignore[misc]
    assert np.array_equal(rows.codes, codes())
    assert np.array_equal(rows.scales, scales().astype(np.float32))
    for name in (CLIP, NORM):
        assert checkpoint.parts[VISION][name].lattice is None
    assert checkpoint.part_sizes[VISION].tensors == len(TENSORS)


def test_tensors_of_a_stored_matrix_are_not_left_out(write: Write, tmp_path: Path) -> None:
    model = write(TENSORS)
    conversion = Conversion(str(model), [vision.name], tmp_path / "out", validation=None)
    report = convert(conversion, warn=lambda line: None).report
    assert report["left_out"] == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["left_out"] == []
    planned = [one for one in manifest["targets"][vision.name]["tensors"] if one.get("part") == VISION]
    assert {one["weight"] for one in planned} == {MATRIX, CLIP, NORM}
    assert inspect(open_model(str(model)), [vision.name])["left_out"] == []
    without = inspect(open_model(str(model)), ["gguf"])["left_out"]
    assert {item["name"] for item in without} == TENSORS.keys()


def test_a_packed_matrix_is_judged_by_its_blocks(write: Write, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(TENSORS))
    plan = vision.plan(checkpoint, "model", {})
    vision.write(checkpoint, plan, tmp_path / "out")
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint,
        "target": vision.name,
        "artifact": tmp_path / "out" / plan.artifacts[0],
        "plan": plan,
        "positions": 16,
        "same_weights": False,
        "cache": tmp_path,
    }
    part = validate(**arguments)["entry"]["parts"][VISION]
    blocks = ROWS * COLUMNS // GROUP
    assert (part["weights"]["blocks"], part["weights"]["exact_blocks"]) == (blocks, blocks)
    assert part["passed"] is True
    file = tmp_path / "out" / vision.file
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    begin = 8 + length + header[MATRIX]["data_offsets"][0]
    values = np.frombuffer(content, "<f4", ROWS * COLUMNS, begin).copy()
    values[np.flatnonzero(values)[0]] *= -1
    content[begin : begin + values.nbytes] = values.tobytes()
    file.write_bytes(content)
    part = validate(**arguments)["entry"]["parts"][VISION]
    assert part["weights"]["exact_blocks"] == blocks - 1
    assert part["passed"] is False


@pytest.mark.parametrize(
    ("changed", "offered"),
    [
        ({f"{MATRIX}_scale": None}, {CLIP, NORM}),
        ({f"{MATRIX}_packed": None}, {f"{MATRIX}_scale", CLIP, NORM}),
        ({f"{MATRIX}_scale": np.ones((ROWS, 7), np.float16)}, {f"{MATRIX}_scale", CLIP, NORM}),
        ({f"{MATRIX}_packed": np.ones((), np.uint8)}, {f"{MATRIX}_scale", CLIP, NORM}),
        ({MATRIX: np.ones((ROWS, COLUMNS), np.float32)}, {MATRIX, f"{MATRIX}_scale", CLIP, NORM}),
    ],
    ids=["no scale", "no codes", "scales of another shape", "a scalar", "stored twice"],
)
def test_what_the_form_does_not_read_is_no_weight_and_the_text_model_is_read(
    write: Write, changed: Mapping[str, NDArray[Any] | None], offered: set[str]
) -> None:
    tensors = {name: array for name, array in {**TENSORS, **changed}.items() if array is not None}
    checkpoint = open_checkpoint(write(tensors))
    assert names(checkpoint) == offered
    assert checkpoint.weights
    assert {item.name for item in checkpoint.left_out} == tensors.keys()
    assert {item.weight for item in checkpoint.left_out} == tensors.keys()
