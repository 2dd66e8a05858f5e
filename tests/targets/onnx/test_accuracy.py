"""The accuracy level of every quantised product, wherever in a model it stands."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from support.onnx_decoder import write_decoder
from targets.onnx.accuracy import LEVELS, accuracy_levels, with_accuracy_level


def product(level: int | None) -> onnx.NodeProto:
    attributes = {} if level is None else {"accuracy_level": level}
    return helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=1, bits=4, **attributes
    )


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    )


def test_products_of_nested_graphs_and_of_functions_are_found() -> None:
    inner = helper.make_node("If", ["c"], ["y"], then_branch=graph(product(1)), else_branch=graph(product(2)))
    outer = helper.make_node("Loop", ["n", "c"], ["y"], body=graph(inner))
    function = helper.make_function("own", "f", ["x"], ["y"], [product(3)], [helper.make_opsetid("", 21)])
    model = helper.make_model(graph(product(None), outer), functions=[function]).SerializeToString()
    assert accuracy_levels(model) == (0, 1, 2, 3)
    for level in LEVELS:
        assert accuracy_levels(with_accuracy_level(model, level)) == (level,)


def test_operators_of_the_same_name_in_another_domain_are_left_alone() -> None:
    node = product(2)
    node.domain = "own"
    model = helper.make_model(graph(node)).SerializeToString(deterministic=True)
    assert accuracy_levels(model) == ()
    assert with_accuracy_level(model, 4) == model


def test_nothing_but_the_level_changes_and_equal_levels_give_equal_bytes(tmp_path: Path) -> None:
    model = write_decoder(tmp_path, level=4).read_bytes()
    exact = with_accuracy_level(model, 0)
    assert with_accuracy_level(exact, 0) == exact
    assert with_accuracy_level(with_accuracy_level(exact, 4), 0) == exact
    before, after = onnx.ModelProto.FromString(model), onnx.ModelProto.FromString(exact)
    for proto in (before, after):
        for node in proto.graph.node:
            kept = [one for one in node.attribute if one.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
    assert before == after


def test_what_is_no_model_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not in ONNX's format"):
        accuracy_levels(b"PK\x03\x04" * 10)
