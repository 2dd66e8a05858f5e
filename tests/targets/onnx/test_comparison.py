"""An ONNX artifact beside its checkpoint: each change is a difference, and what was converted has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CheckpointFactory

import targets.onnx.comparison
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.errors import CheckpointError
from support.onnx_tampering import onnx_file_tamperings, onnx_tamperings
from support.plans import plan_of
from support.tampering import Tampering, applied, byte_flips
from targets.onnx import target
from targets.onnx.message import model_differences
from targets.onnx.protobuf import External, read_graph
from targets.target import Difference

pytestmark = pytest.mark.slow

FILE = "onnx/model.onnx"
DATA = "onnx/model.onnx.data"
OPTIONS = {"license": "apache-2.0", "repo": "owner/name", "revision": "0" * 40}


@pytest.fixture(scope="module", autouse=True)
def each_graph_is_built_once() -> Iterator[None]:
    """Building the expected graph takes seconds, and hundreds of comparisons here want the same one."""
    built: dict[str, bytes] = {}
    build = targets.onnx.comparison.serialized_graph

    def remembered(*arguments: Any) -> bytes:
        key = repr(arguments)
        if key not in built:
            built[key] = build(*arguments)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("targets.onnx.comparison.serialized_graph", remembered)
        yield


@pytest.fixture(scope="module")
def converted(demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with ``onnx`` of the shipped checkpoint."""
    output = tmp_path_factory.mktemp("converted")
    target.write(demo, target.plan(demo, "model", OPTIONS), output)
    return output


def differences(directory: Path, checkpoint: Checkpoint) -> list[Difference]:
    plan = plan_of(target, checkpoint, OPTIONS)
    return list(target.differences(directory / FILE, checkpoint, plan))


def deciding(found: list[Difference]) -> set[str]:
    return {one.where for one in found if one.deciding}


def caught(tampering: Tampering, source: Path, checkpoint: Checkpoint, scratch: Path) -> bool:
    copy = applied(tampering, source, scratch)
    try:
        found = differences(copy, checkpoint)
    except CheckpointError:
        return True
    return bool(found) and (tampering.describes or bool(deciding(found)))


@pytest.mark.parametrize(
    ("variant", "scheme", "options"),
    [
        ("gemma3", "max7", {}),
        ("e2b", "max7", {"license": "apache-2.0", "onnx_dtype": "float16"}),
        ("e2b", "max7", {"onnx_scales": "f16", "accuracy_level": 4}),
        ("26b-a4b", "max7", {}),
        ("e4b", "latent", {}),
        ("e4b", "latent", {"off_lattice": "bf16"}),
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
    artifact = tmp_path / FILE
    assert list(target.differences(artifact, checkpoint, plan)) == []
    again = target.plan(checkpoint, "model", target.infer_options(artifact, checkpoint))
    assert list(target.differences(artifact, checkpoint, again)) == []
    assert {**again.options, "accuracy_level": 0} == {
        **plan.options,
        "accuracy_level": 0,
    }
    for name, one in target.describe(artifact, checkpoint).items():
        rows = checkpoint.weights[name].rows
        assert one.rule is not None
        np.testing.assert_array_equal(one.rule(rows // 3, rows), one.floats(rows // 3, rows), name)


def test_either_of_the_levels_that_are_measured_is_right(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    for level in (4, 0):
        choose = Tampering("level", lambda copy, n=level: target.choose(copy / FILE, {"accuracy_level": n}))
        assert differences(applied(choose, converted, tmp_path / "copy"), demo) == []
    other = Tampering("level", lambda copy: target.choose(copy / FILE, {"accuracy_level": 2}))
    assert deciding(differences(applied(other, converted, tmp_path / "copy"), demo))


def test_every_change_of_the_graph_is_a_difference(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    tamperings = list(onnx_tamperings(converted, FILE))
    whole = (converted / FILE).read_bytes()
    graph = tmp_path / "graph" / FILE
    graph.parent.mkdir(parents=True)
    missed = []
    for tampering in tamperings:  # the graph alone: a comparison with all data takes 20 times as long
        graph.write_bytes(whole)
        tampering.change(tmp_path / "graph")
        found = model_differences(whole, graph.read_bytes(), graph)
        elsewhere = tampering.name.endswith(": offset")  # a matter of the data, see below
        if not found or not (deciding(found) or tampering.describes or elsewhere):
            missed.append(tampering.name)
    assert missed == []
    assert len(tamperings) > 1000
    offsets = [one for one in tamperings if one.name.endswith(": offset")]
    some = [*offsets[::30], *tamperings[::300]]
    assert [one.name for one in some if not caught(one, converted, demo, tmp_path / "copy")] == []


def test_every_change_of_a_side_file_is_a_difference(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    tamperings = list(onnx_file_tamperings(converted))
    assert [one.name for one in tamperings if not caught(one, converted, demo, tmp_path / "copy")] == []
    assert len(tamperings) > 20


@pytest.mark.parametrize("file", [FILE, DATA, "onnx/tokenizer.json", "onnx/genai_config.json"])
def test_every_flipped_byte_is_a_difference(
    converted: Path, demo: Checkpoint, tmp_path: Path, file: str
) -> None:
    flips = byte_flips(converted, file, 50 if file in (FILE, DATA) else 20)
    assert [one.name for one in flips if not caught(one, converted, demo, tmp_path / "copy")] == []


def test_one_wrong_byte_of_each_initializer_is_a_difference_of_each(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    places = {
        name: one.data
        for name, one in read_graph(converted / FILE).initializers.items()
        if isinstance(one.data, External)
    }

    def change(copy: Path) -> None:
        data = bytearray((copy / DATA).read_bytes())
        for offset in {place.offset for place in places.values()}:
            data[offset] ^= 1
        (copy / DATA).write_bytes(data)

    copy = applied(Tampering("one byte each", change), converted, tmp_path / "copy")
    named = {one.where.removeprefix("tensor ") for one in differences(copy, demo) if one.deciding}
    assert named == {name for name in places if not name.endswith(".scales") and "lm_head" not in name}


def test_bytes_that_no_tensor_uses_are_differences(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    longer = Tampering("longer", lambda copy: (copy / DATA).write_bytes((copy / DATA).read_bytes() + b"\0"))
    copy = applied(longer, converted, tmp_path / "copy")
    assert deciding(differences(copy, demo)) == {"model.onnx.data: size"}


def test_data_that_lie_elsewhere_are_right(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    import onnx

    def move(copy: Path) -> None:
        """Everything 64 bytes later, in a file of another name."""
        model = onnx.load(str(copy / FILE), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(int(entry.value) + 64)
                elif entry.key == "location":
                    entry.value = "weights.data"
        (copy / FILE).write_bytes(model.SerializeToString(deterministic=True))
        (copy / "onnx/weights.data").write_bytes(bytes(64) + (copy / DATA).read_bytes())
        (copy / DATA).unlink()

    found = differences(applied(Tampering("moved", move), converted, tmp_path / "copy"), demo)
    assert found
    assert deciding(found) == set()


def test_a_head_that_is_read_elsewhere_than_the_embedding_it_is_tied_to_is_compared(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    import onnx

    def move(copy: Path) -> None:
        model = onnx.load(str(copy / FILE), load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        size = (copy / DATA).stat().st_size
        (head,) = [tensor for name, tensor in tensors.items() if name == "model.lm_head.weight"]
        entries = {entry.key: entry for entry in head.external_data}
        offset, length = int(entries["offset"].value), int(entries["length"].value)
        data = (copy / DATA).read_bytes()
        (copy / DATA).write_bytes(data + data[offset : offset + length - 1] + b"\x11")
        entries["offset"].value = str(size)
        (copy / FILE).write_bytes(model.SerializeToString(deterministic=True))

    copy = applied(Tampering("head", move), converted, tmp_path / "copy")
    assert "tensor model.embed_tokens.weight" in deciding(differences(copy, demo))


def test_a_lone_model_lacks_each_file_beside_it(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes((converted / "onnx" / name).read_bytes())
    (tmp_path / "notes.json").write_text("{}")  # a directory of someone else
    found = target.differences(tmp_path / "model.onnx", demo, target.plan(demo, "model", OPTIONS))
    beside = {path.name for path in (converted / "onnx").iterdir()} - {"model.onnx", "model.onnx.data"}
    assert deciding(list(found)) == beside


def test_a_difference_of_a_side_file_names_the_key(converted: Path, demo: Checkpoint, tmp_path: Path) -> None:
    def change(copy: Path) -> None:
        path = copy / "onnx/genai_config.json"
        values = json.loads(path.read_text())
        values["search"]["top_k"] = 1
        path.write_text(json.dumps(values))

    (found,) = differences(applied(Tampering("top_k", change), converted, tmp_path / "copy"), demo)
    assert found == Difference("genai_config.json: search.top_k", "64", "1")


def test_a_side_file_of_the_same_content_does_not_decide(
    converted: Path, demo: Checkpoint, tmp_path: Path
) -> None:
    def respell(copy: Path) -> None:
        path = copy / "onnx/tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=3))

    (found,) = differences(applied(Tampering("respelled", respell), converted, tmp_path / "copy"), demo)
    assert (found.where, found.deciding) == ("tokenizer.json", False)


def test_the_stage_counts_the_bytes_of_the_checkpoint(converted: Path, demo: Checkpoint) -> None:
    seen: list[tuple[str, int, int]] = []
    plan = target.plan(demo, "model", OPTIONS)
    target.differences(converted / FILE, demo, plan, lambda *told: seen.append(told))
    assert {stage for stage, *_ in seen} == {"comparing onnx"}
    assert seen[-1][1:] == (demo.stored_bytes, demo.stored_bytes)
