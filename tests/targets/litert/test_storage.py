"""How LiteRT holds weights, as planned."""

from __future__ import annotations

from collections import Counter

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from targets.litert.reading import open_models
from targets.litert.schema import OPERATORS, TYPES
from targets.litert.storage import (
    EMBEDDING,
    HEAD,
    LITERT,
    OFF_LATTICE,
    negative_weights,
    off_lattice_option,
    operators,
    planned_tensors,
)


def planned(checkpoint):
    weights = checkpoint.weights
    return planned_tensors(weights, negative_weights(weights.values()), checkpoint.architecture.tied_head)


def test_a_lattice_with_positive_scales_takes_four_and_a_half_bits(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "max7"))
    tensors = planned(checkpoint)
    assert [tensor.weight for tensor in tensors] == list(checkpoint.weights)
    coded = [tensor for tensor in tensors if tensor.type == "INT4"]
    assert coded
    assert all(tensor.bytes * 8 == tensor.shape[0] * tensor.shape[1] * 4.5 for tensor in coded)
    assert {tensor.type for tensor in tensors} == {"INT4", "FLOAT"}
    assert all(tensor.exact for tensor in tensors)


def test_negative_scales_ask_for_sums_where_matrices_are_multiplied(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "extremum8"))
    tensors = planned(checkpoint)
    formats = {tensor.stored_as: tensor.type for tensor in tensors}
    assert formats[EMBEDDING] == "INT4"
    assert formats[HEAD] == "INT4+sums"
    assert formats["layers.0.mlp.down_proj.weight"] == "INT4+sums"
    assert (tensors[-1].weight, tensors[-1].stored_as) == (EMBEDDING, HEAD)


def test_looking_for_negative_scales_is_told_as_it_goes(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "extremum8"))
    told: list[tuple[int, int]] = []
    found = negative_weights(checkpoint.weights.values(), lambda *step: told.append(step))
    assert "layers.0.mlp.down_proj.weight" in found
    assert "layers.0.input_layernorm.weight" not in found
    assert told[-1] == (checkpoint.parameters, checkpoint.parameters)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize(
    ("variant", "scheme", "layout"), [("demo", "max7", "hub"), ("e2b", "extremum8", "transformers")]
)
def test_the_operators_of_the_plan_are_those_of_the_graph(
    variant, scheme, layout, checkpoint_factory, demo_checkpoint, litert_bundle
):
    other = {} if layout == "hub" else {"layout": layout}
    directory = demo_checkpoint if variant == "demo" else checkpoint_factory(variant, scheme, **other)
    checkpoint = open_checkpoint(directory)
    (model,) = open_models(litert_bundle(variant, scheme, layout))
    read: dict[str, Counter[str]] = {}
    decode = max(model.subgraphs, key=lambda graph: len(graph.tensors))  # a prefill reads fewer weights
    for operator in decode.operators:
        kind = OPERATORS.get(operator.code)
        if kind in ("EMBEDDING_LOOKUP", "FULLY_CONNECTED") and decode.tensors[operator.inputs[1]].buffer:
            type = TYPES[decode.tensors[operator.inputs[1]].type]
            read.setdefault(kind, Counter())[type] += 1
    planned_operators = operators(planned(checkpoint), checkpoint.architecture.tied_head)
    assert {kind: dict(types) for kind, types in read.items()} == planned_operators


def test_scales_that_need_float32_are_not_exact(checkpoint_factory):
    tensors = planned(open_checkpoint(checkpoint_factory("text", "learned-f32")))
    assert any(not tensor.exact for tensor in tensors if tensor.type == "INT4")


def test_sizes_of_rows():
    assert LITERT.row_parts("INT4", 64) == (32, 4, 0)
    assert LITERT.row_parts("INT4+sums", 64) == (32, 4, 8)
    assert LITERT.row_parts("FLOAT16", 64) == (128, 0, 0)
    with pytest.raises(ValueError, match="multiple of 32"):
        LITERT.row_parts("INT4", 48)


def test_the_option_for_matrices_on_no_lattice():
    assert OFF_LATTICE[off_lattice_option({})] == "FLOAT16"
    assert OFF_LATTICE[off_lattice_option({"off_lattice": "F32"})] == "FLOAT"
    with pytest.raises(UsageError, match="'int3' is unknown to litert; known: q8_0"):
        off_lattice_option({"off_lattice": "int3"})


def test_no_warning_where_everything_is_on_the_lattice(checkpoint_factory):
    assert LITERT.warnings(open_checkpoint(checkpoint_factory("text")).weights.values()) == []
