"""Products that take their input in one row or in two: the option, the graph, and what the graph shows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from targets.litert.activations import (
    check_activations,
    found_activations,
    projections,
    read_activations,
    two_rows,
    ways,
)
from targets.litert.inferred import infer_options
from targets.litert.reading import open_models
from targets.litert.schema import OPERATORS, TYPES
from targets.target import find_target


@pytest.fixture(scope="module")
def small(checkpoint_factory):
    return open_checkpoint(checkpoint_factory("gemma3"))


def rows_of_products(artifact: Path) -> dict[str, set[int]]:
    """For each weight that a product reads as codes, the rows that it takes for one token: the graphs for
    more tokens have that many times as many."""
    found: dict[str, set[int]] = {}
    for model in open_models(artifact):
        for graph in model.subgraphs:
            for operator in graph.operators:
                if OPERATORS.get(operator.code) == "FULLY_CONNECTED":
                    values, weight = (graph.tensors[index] for index in operator.inputs[:2])
                    if TYPES.get(weight.type) == "INT4":
                        found.setdefault(weight.name, set()).add(math.prod(values.shape[:-1]))
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("1", "1"),
        (" 2 ", "2"),
        (1, "1"),
        ("layers", "layers"),
        ("static", "static"),
        ("v_proj, down_proj,v_proj", "down_proj,v_proj"),
    ],
)
def test_the_option_has_one_form_for_each_meaning(given, expected):
    assert read_activations(given) == expected


@pytest.mark.parametrize("given", ["", "3", "1,2", "down-proj", "down_proj,", "1.0", "*"])
def test_what_is_neither_rows_nor_names_is_refused(given):
    with pytest.raises(UsageError, match="give 1, 2, layers, static, or the projections that take"):
        read_activations(given)


def test_a_projection_that_the_model_lacks_is_refused_with_those_that_it_has(small, checkpoint_factory):
    check_activations("down_proj,lm_head", small)
    with pytest.raises(
        UsageError, match=r"no projection 'per_layer_projection'; it has: down_proj, .*v_proj"
    ):
        check_activations("per_layer_projection", small)
    check_activations("per_layer_projection", open_checkpoint(checkpoint_factory("e2b")))


@pytest.mark.parametrize("variant", ["gemma3", "e2b", "26b-a4b"])
def test_projections_are_what_multiplies_and_rounds(checkpoint_factory, variant):
    architecture = open_checkpoint(checkpoint_factory(variant)).architecture
    names = set(projections(architecture))
    assert {"q_proj", "o_proj", "down_proj", "lm_head"} <= names
    assert not names & {"proj", "embed_tokens", "embed_tokens_per_layer"}  # looked up, or the float router
    assert ("per_layer_model_projection" in names) == (variant == "e2b")
    assert ("gate_up_proj" in names) == (variant == "26b-a4b")
    assert set(two_rows("layers", architecture)) == names - {"lm_head"}
    assert two_rows("1", architecture) == two_rows(None, architecture) == ()
    assert set(two_rows("2", architecture)) == names


def test_ways_are_offered_where_a_product_rounds(small, checkpoint_factory):
    target = find_target("litert")
    plan = target.plan(small, "x", {})
    assert [choice["activations"] for choice in target.choices(plan)] == ["1", "2"]
    assert target.choices(target.plan(small, "x", {"activations": "1"})) == ()
    assert ways([tensor for tensor in plan.tensors if tensor.type == "FLOAT"]) == ()
    for choice in target.choices(plan):
        assert target.written(plan, choice).options == {**plan.options, **choice}


def test_what_is_found_has_the_forms_of_the_option():
    assert found_activations(["q_proj"], []) == found_activations([], []) == "1"
    assert found_activations([], ["q_proj"]) == "2"
    assert found_activations(["lm_head"], ["q_proj", "o_proj"]) == "layers"
    assert found_activations(["lm_head", "q_proj"], ["o_proj", "q_proj"]) == "layers"
    assert found_activations(["q_proj"], ["lm_head", "down_proj"]) == "down_proj,lm_head"


@pytest.mark.parametrize("given", ["2", "down_proj,lm_head", "layers"])
def test_the_graph_splits_the_input_of_these_products_and_no_others(checkpoint_factory, litert_bundle, given):
    bundle = litert_bundle("gemma3", activations=given)
    checkpoint = open_checkpoint(checkpoint_factory("gemma3"))
    assert infer_options(bundle, checkpoint.weights)["activations"] == given
    two = set(two_rows(given, checkpoint.architecture))
    found = rows_of_products(bundle)
    assert found
    for name, counts in found.items():
        projection = "lm_head" if name == "embed_tokens.weight" else name.split(".")[-2]
        assert min(counts) == (2 if projection in two else 1), name
        assert all(count % min(counts) == 0 for count in counts)


def test_experts_take_two_rows_and_the_float_router_one(checkpoint_factory, litert_bundle):
    bundle = litert_bundle("26b-a4b", activations="2")
    found = rows_of_products(bundle)
    assert {min(counts) for counts in found.values()} == {2}
    assert any("experts.down_proj" in name for name in found)
    assert any("experts.gate_up_proj" in name for name in found)
    for model in open_models(bundle):
        for graph in model.subgraphs:
            for operator in graph.operators:
                read = [graph.tensors[index] for index in operator.inputs[:2] if index >= 0]
                if OPERATORS.get(operator.code) == "FULLY_CONNECTED" and ".router." in read[1].name:
                    assert math.prod(read[0].shape[:-1]) in (1, 128)


def test_another_way_than_the_plan_says_is_a_difference_that_decides(checkpoint_factory, litert_bundle):
    target, checkpoint = find_target("litert"), open_checkpoint(checkpoint_factory("gemma3"))
    bundle = litert_bundle("gemma3", activations="layers")
    name = bundle.name.removesuffix(".litertlm")
    right = target.plan(checkpoint, name, {"activations": "layers"})
    assert target.differences(bundle, checkpoint, right) == []
    for other in ("1", "2"):
        plan = target.plan(checkpoint, name, {"activations": other})
        assert any(one.deciding for one in target.differences(bundle, checkpoint, plan)), other
