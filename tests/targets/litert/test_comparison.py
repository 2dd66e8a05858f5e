"""A bundle compared with what the converter makes of its checkpoint: every change is named, the right one
passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("litert_torch")
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from converter.errors import CheckpointError
from converter.system.progress import no_progress
from support import litert_tampering as tampering
from support.litert_repacking import TOKENIZER, edit_tokenizer, repack
from targets.litert.artifact import _graphs, _types
from targets.litert.bundle import Section, read_sections, write_bundle
from targets.litert.comparison import bundle_differences, expect
from targets.litert.metadata import metadata_sections
from targets.litert.sections import MODEL
from targets.target import Difference, find_target


@pytest.fixture(scope="module")
def bundle(litert_bundle: Callable[..., Path]) -> Path:
    return litert_bundle("demo")


@pytest.fixture(scope="module")
def compare(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[Difference]]:
    checkpoint, target = open_checkpoint(DEMO), find_target("litert")
    plan = target.plan(checkpoint, "model", {})
    graphs = _graphs(checkpoint, plan, tmp_path_factory.mktemp("graphs"), no_progress)
    assert plan.context is not None
    sections = metadata_sections(checkpoint, plan.context)
    expected = expect(sections, graphs, checkpoint.weights, _types(plan))
    return lambda path: bundle_differences(path, expected)


def deciding(differences: list[Difference]) -> list[str]:
    return [one.where for one in differences if one.deciding]


def test_the_bundle_that_was_written_has_no_difference_and_no_second_export(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, target = open_checkpoint(DEMO), find_target("litert")
    monkeypatch.delattr("targets.litert.artifact.export_graphs")
    seen: list[tuple[str, int, int]] = []
    plan = target.plan(checkpoint, "model", target.infer_options(bundle, checkpoint))
    assert target.differences(bundle, checkpoint, plan, lambda *step: seen.append(step)) == []
    assert seen[-1][0] == "comparing litert"
    assert seen[-1][1] == seen[-1][2]


def test_options_are_inferred(bundle: Path) -> None:
    options = find_target("litert").infer_options(bundle, open_checkpoint(DEMO))
    assert options == {
        "prefill_lengths": [128],
        "context_length": 2048,
        "externalize_embedder": False,
        "activations": "1",
        "off_lattice": "q8_0",
    }


def test_the_rule_is_what_a_right_bundle_holds_bit_for_bit(bundle: Path) -> None:
    checkpoint = open_checkpoint(DEMO)
    stored = find_target("litert").describe(bundle, checkpoint)
    assert stored.keys() == checkpoint.weights.keys()
    for name, one in stored.items():
        assert one.rule is not None
        rows = checkpoint.weights[name].rows
        assert one.rule(0, rows).tobytes() == one.floats(0, rows).tobytes(), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (tampering.add_operator, "decode: operators"),
        (tampering.swap_outputs, "output kv_cache"),
        (tampering.swap_inputs, "(SUB): inputs"),
        (tampering.change_axis, "(MEAN): option 0"),
        (tampering.change_activation, "(FULLY_CONNECTED): option 0"),
        (partial(tampering.change_constant, old=1e-6, new=1e-3), "tensor"),
        (tampering.change_window, "tensor"),
        (tampering.add_metadata, "metadata 'reduced_precision_support'"),
    ],
)
def test_a_graph_that_computes_something_else_is_a_deciding_difference(
    change: Callable[[Any], object],
    told: str,
    bundle: Path,
    compare: Callable[[Path], list[Difference]],
    tmp_path: Path,
) -> None:
    found = deciding(compare(tampering.edit_graph(bundle, tmp_path / "model.litertlm", change)))
    assert any(told in where for where in found), found


def test_another_order_and_other_names_decide_nothing(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    path = tampering.edit_graph(bundle, tmp_path / "a.litertlm", tampering.describe_otherwise)
    data = path.read_bytes()
    sections = [
        Section(one.kind, data[one.offset : one.offset + one.size], one.model_type)
        for one in reversed(read_sections(path))
    ]
    write_bundle(tmp_path / "b.litertlm", sections)
    differences = compare(tmp_path / "b.litertlm")
    assert deciding(differences) == []
    assert any(one.where.endswith("description") for one in differences)


def test_metadata_are_compared_field_by_field(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    def change(content: bytes) -> bytes:
        message = llm_metadata_pb2.LlmMetadata.FromString(content)
        message.stop_tokens[0].token_ids.ids[0] += 1
        message.jinja_prompt_template += " "
        return message.SerializeToString() + b"\xf8\x7f\x01"  # a field that is not known

    path = repack(bundle, tmp_path / "m.litertlm", "LlmMetadataProto", change)
    found = " ".join(deciding(compare(path)))
    assert "LlmMetadata.stop_tokens[0].token_ids.ids[0]" in found
    assert "LlmMetadata.jinja_prompt_template" in found
    assert "LlmMetadata: field 2047" in found


def test_a_tokenizer_is_compared_as_it_reads(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    other = repack(bundle, tmp_path / "a.litertlm", TOKENIZER, edit_tokenizer(lambda text: text[:-1] + b" "))
    assert "tokenizer.json" in deciding(compare(other))[0]
    assert deciding(compare(repack(bundle, tmp_path / "b.litertlm", TOKENIZER, edit_tokenizer(bytes)))) == []
    behind = repack(bundle, tmp_path / "c.litertlm", TOKENIZER, lambda content: content + b"more")
    assert deciding(compare(behind)) == [TOKENIZER]


def test_sections_that_are_missing_or_unexpected_decide(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    data = bundle.read_bytes()
    sections = [
        Section(one.kind, data[one.offset : one.offset + one.size], one.model_type)
        for one in read_sections(bundle)
    ]
    write_bundle(tmp_path / "m.litertlm", [*sections[1:], Section("GenericBinaryData", b"more")])
    found = deciding(compare(tmp_path / "m.litertlm"))
    assert {"section 'LlmMetadataProto'", "section 'GenericBinaryData'"} == set(found)


def test_bytes_between_and_behind_sections_are_told(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    path, data = tmp_path / "m.litertlm", bundle.read_bytes()
    path.write_bytes(data + b"\1")
    assert deciding(compare(path)) == [f"byte {len(data)} of the file"]
    first = read_sections(bundle)[0].offset
    path.write_bytes(data[: first - 1] + b"\1" + data[first:])
    assert deciding(compare(path)) == [f"byte {first - 1} of the file"]


def test_one_code_decides_and_names_its_tensor(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    model = next(one for one in read_sections(bundle) if one.kind == MODEL)
    data = bytearray(bundle.read_bytes())
    data[model.offset + model.size - 1000] ^= 1
    (tmp_path / "m.litertlm").write_bytes(data)
    (where,) = deciding(compare(tmp_path / "m.litertlm"))
    assert where == "tensor per_layer_model_projection.weight"


def test_any_byte_that_changes_is_a_difference_or_an_error(
    bundle: Path, compare: Callable[[Path], list[Difference]], tmp_path: Path
) -> None:
    path, missed = tmp_path / "m.litertlm", []
    for place, content in tampering.single_bytes(bundle.read_bytes(), 80):
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            if not compare(path):
                missed.append(place)
    assert missed == []
