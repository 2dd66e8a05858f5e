"""Products that round to a checkpoint's static grids: what they compute, and how it shows in the artifact."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import Scales
from converter.errors import UsageError
from support.litert_graph import graph
from support.litert_rows import (
    BITS,
    COLUMNS,
    EMBEDDING_HEAD,
    MATRIX,
    PLAIN,
    ROWS,
    XNNPACK,
    rows_of,
    run,
    write,
)
from support.litert_rows import values as values_of
from targets.litert.activations import STATIC, Grid, check_activations, static_grids, ways
from targets.litert.comparison import expect, model_differences
from targets.litert.reading import describe_models, open_models
from targets.litert.schema import OPERATORS
from targets.litert.widening import widen
from targets.target import find_target

COUNT = 4
#: Steps that cut off a few of the largest numbers.
GRID = Grid(0.02, 0.11)

each_width = pytest.mark.parametrize("bits", BITS)


def product():
    return graph(lambda f: f.multiply(MATRIX, ROWS, COLUMNS, COUNT))


def inputs():
    return np.random.default_rng(3).normal(size=(COUNT, COLUMNS)).astype(np.float32)


def on_grid(x, step):
    """As transformers rounds: half to even, in float32."""
    step = np.float32(step)
    return (np.clip(np.rint(x / step), -128, 127) * step).astype(np.float32)


def expected(weight, grid):
    x = inputs() if grid.input is None else on_grid(inputs(), grid.input)
    exact = (x.astype(np.float64) @ values_of(weight).T.astype(np.float64)).astype(np.float32)
    return exact if grid.output is None else on_grid(exact, grid.output)


def computed(path, resolver=XNNPACK):
    return run(path, resolver, **{f"x:{MATRIX}": inputs()})[f"y:{MATRIX}"]


@each_width
def test_integers_are_multiplied_and_nothing_else_is_rounded(bits, tmp_path):
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    write(path, product(), [weight], {MATRIX: BITS[bits]}, grids={MATRIX: GRID})
    right = expected(weight, GRID)
    assert len(np.unique(right)) > 20
    np.testing.assert_allclose(computed(path), right, rtol=1e-6)
    # without XNNPACK an output may be rounded to the other neighbour
    assert np.abs(computed(path, PLAIN) - right).max() < 1.001 * GRID.output
    (graph_of,) = open_models(path)[0].subgraphs
    assert [OPERATORS[one.code] for one in graph_of.operators] == [
        "QUANTIZE",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]
    found = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    np.testing.assert_array_equal(found.floats(0, ROWS), values_of(weight))


@each_width
@pytest.mark.parametrize("grid", [Grid(0.02, None), Grid(None, 0.11)], ids=["input", "output"])
def test_a_product_with_one_grid_goes_through_int8_and_is_rounded_as_ever(bits, grid, tmp_path):
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    write(path, product(), [weight], {MATRIX: BITS[bits]}, grids={MATRIX: grid})
    right = expected(weight, grid)
    exact = np.abs(expected(weight, replace(grid, output=None))).max()
    assert np.abs(computed(path) - right).max() < 0.01 * exact + 1.001 * (grid.output or 0)
    if grid.output:
        steps = computed(path) / np.float32(grid.output)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


def test_numbers_are_rounded_on_both_sides(tmp_path):
    weight, path = rows_of(4), tmp_path / "m.tflite"
    write(path, product(), [weight], {MATRIX: "FLOAT"}, grids={MATRIX: GRID})
    off = np.abs(computed(path) - expected(weight, GRID)) / GRID.output
    assert off.max() < 1.001
    assert (off > 0.01).mean() < 0.02


def test_products_of_one_input_share_its_integers_by_step(tmp_path):
    names = [f"layers.0.self_attn.{one}_proj.weight" for one in "qkv"]

    def build(function):
        x = function.argument("x", (COUNT, COLUMNS))
        for name in names:
            function.product(x, name, ROWS, COLUMNS, function.result(f"y:{name}", (COUNT, ROWS)))

    weights = [rows_of(4, name, seed=seed) for seed, name in enumerate(names)]
    grids = dict(zip(names, (GRID, GRID, replace(GRID, input=0.03)), strict=True))
    path = tmp_path / "m.tflite"
    write(path, graph(build), weights, dict.fromkeys(names, BITS[4]), grids=grids)
    (found,) = open_models(path)[0].subgraphs
    kinds = [OPERATORS[one.code] for one in found.operators]
    assert (kinds.count("QUANTIZE"), kinds.count("DEQUANTIZE")) == (2, 3)
    made = run(path, x=inputs())
    for weight in weights:
        right = on_grid(on_grid(inputs(), grids[weight.name].input) @ values_of(weight).T, GRID.output)
        assert np.abs(made[f"y:{weight.name}"] - right).max() < 1.001 * GRID.output


def test_a_tied_head_has_the_heads_grid_and_rows_are_looked_up_as_ever(tmp_path):
    table, head = EMBEDDING_HEAD

    def build(function):
        function.look_up(table, ROWS, COLUMNS, ROWS)
        function.multiply(table, ROWS, COLUMNS, COUNT)

    weight, path = rows_of(2, table), tmp_path / "m.tflite"
    write(path, graph(build), [weight], {table: BITS[2]}, grids={head: GRID})
    made = run(path, **{f"x:{table}": inputs(), f"i:{table}": np.arange(ROWS, dtype=np.int32)})
    np.testing.assert_array_equal(made[f"e:{table}"], values_of(weight))
    np.testing.assert_allclose(made[f"y:{table}"], expected(weight, GRID), rtol=1e-6)


# what an artifact shows


@pytest.mark.parametrize("change", [{"input": 0.0200001}, {"output": 0.12}, {"output": None}])
def test_another_grid_is_a_difference(change, tmp_path):
    weight, path = rows_of(4), tmp_path / "m.tflite"
    weights, types = {MATRIX: weight}, {MATRIX: BITS[4]}
    write(path, product(), [weight], types, grids={MATRIX: GRID})
    for grid in (GRID, replace(GRID, **change)):
        wanted = expect([], {"prefill_decode": product()}, weights, types, grids={MATRIX: grid})
        found = model_differences(path, "prefill_decode", wanted)
        assert any(one.deciding for one in found) == (grid != GRID)


@each_width
@pytest.mark.parametrize("grid", [GRID, Grid(0.02, None), Grid(None, 0.11)])
def test_widened_it_rounds_nothing(bits, grid, tmp_path):
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    write(path, product(), [weight], {MATRIX: BITS[bits]}, grids={MATRIX: grid})
    with open(tmp_path / "wide.tflite", "wb") as output:
        widen(open_models(path)[0], output)
    right = inputs() @ values_of(weight).T
    np.testing.assert_allclose(computed(tmp_path / "wide.tflite"), right, rtol=1e-4, atol=1e-5)


def test_float16_is_widened_beside_integers(tmp_path):
    other = "layers.0.mlp.up_proj.weight"

    def build(function):
        function.multiply(MATRIX, ROWS, COLUMNS, COUNT)
        function.multiply(other, ROWS, COLUMNS, COUNT)

    weights, path = [rows_of(4), rows_of(4, other, scales=np.full(ROWS, 0.5))], tmp_path / "m.tflite"
    write(path, graph(build), weights, {MATRIX: BITS[4], other: "FLOAT16"}, grids={MATRIX: GRID})
    with open(tmp_path / "wide.tflite", "wb") as output:
        widen(open_models(path)[0], output)
    made = run(tmp_path / "wide.tflite", **{f"x:{one}": inputs() for one in (MATRIX, other)})
    for weight in weights:
        right = inputs() @ values_of(weight).T
        np.testing.assert_allclose(made[f"y:{weight.name}"], right, rtol=1e-4, atol=1e-5)


# what may be asked for


def test_a_checkpoint_without_grids_is_told_so(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    with pytest.raises(UsageError, match="the checkpoint has no static scales of activations"):
        find_target("litert").plan(checkpoint, "model", {"activations": STATIC})


def test_its_grids_are_by_matrix_and_all_or_none(mobile_factory):
    checkpoint = open_checkpoint(mobile_factory("text"))
    found = static_grids(checkpoint)
    assert set(found.values()) == {Grid(0.0625, float(np.float32(0.09)))}
    assert len(found) > 20
    assert set(found) <= {*checkpoint.weights, "lm_head.weight"}
    channels = np.full(7, 0.1, np.float32)
    scales = {**checkpoint.scales, next(iter(checkpoint.grids)): Scales(input=channels)}
    assert static_grids(replace(checkpoint, scales=scales)) == {}
    with pytest.raises(UsageError, match="scales for each channel"):
        check_activations(STATIC, replace(checkpoint, scales=scales))


def test_they_are_tried_behind_one_row_and_decide_the_reference(mobile_factory, checkpoint_factory):
    target = find_target("litert")
    plan = target.plan(open_checkpoint(mobile_factory("text")), "model", {})
    choices = target.choices(plan)
    assert [one["activations"] for one in choices] == ["1", "static", "2"]
    assert [target.written(plan, one).applies_grids for one in choices] == [False, True, False]
    given = target.plan(open_checkpoint(mobile_factory("text")), "model", {"activations": "static"})
    assert (given.applies_grids, target.choices(given)) == (True, ())
    without = target.plan(open_checkpoint(checkpoint_factory("text")), "model", {})
    assert [one["activations"] for one in target.choices(without)] == ["1", "2"]


def test_where_no_product_rounds_there_is_nothing_to_choose():
    planned = SimpleNamespace(type="FLOAT", stored_as=MATRIX)
    assert ways([planned], static=True) == ()
