"""Codes of 2, 4 and 8 bits with one float32 scale for each row: what LiteRT computes with them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
from ai_edge_litert import schema_py_generated as schema

from converter.checkpoint.weight import EXACT
from converter.errors import CheckpointError, TargetError
from support.litert_graph import graph
from support.litert_rows import (
    BITS,
    COLUMNS,
    HEAD,
    MATRIX,
    PLAIN,
    ROWS,
    TABLE,
    XNNPACK,
    rows_of,
    run,
    values,
    write,
)
from targets.gguf.storage import Q4_0
from targets.litert import encoding
from targets.litert.encoding import pack_codes
from targets.litert.filling import lay_out
from targets.litert.functions import read_content
from targets.litert.reading import describe_models, open_models
from targets.litert.storage import planned_tensors
from targets.litert.widening import widen
from targets.storing import naively_rounded

each_width = pytest.mark.parametrize("bits", BITS)


def product_graph(rows=ROWS, columns=COLUMNS, functions=1):
    return graph(*[lambda f: f.multiply(MATRIX, rows, columns, columns)] * functions)


def look_up_graph():
    return graph(lambda f: f.look_up(TABLE, ROWS, COLUMNS, ROWS))


def multiplied(path, resolver=XNNPACK):
    out = run(path, resolver, **{f"x:{MATRIX}": np.eye(COLUMNS, dtype=np.float32)})
    return out[f"y:{MATRIX}"].T


def looked_up(path, resolver=XNNPACK):
    out = run(path, resolver, **{f"i:{TABLE}": np.arange(ROWS, dtype=np.int32)})
    return out[f"e:{TABLE}"]


# what the runtime takes


@each_width
def test_a_product_computes_with_scale_times_code(bits, tmp_path):
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    filled = write(path, product_graph(), [weight], {MATRIX: BITS[bits]})
    np.testing.assert_allclose(multiplied(path), values(weight), rtol=2e-6)
    assert (filled.blocks, filled.off_lattice, filled.rounded, filled.narrowed) == (ROWS, {}, 0, {})


def test_a_product_of_2_bits_needs_no_xnnpack(tmp_path):
    weight, path = rows_of(2), tmp_path / "m.tflite"
    write(path, product_graph(), [weight], {MATRIX: BITS[2]})
    np.testing.assert_allclose(multiplied(path, PLAIN), values(weight), rtol=2e-6)


@each_width
@pytest.mark.parametrize("resolver", [XNNPACK, PLAIN], ids=["xnnpack", "plain"])
def test_a_look_up_gives_scale_times_code_exactly(bits, resolver, tmp_path):
    scales = np.random.default_rng(1).uniform(-0.1, 0.1, ROWS)
    weight, path = rows_of(bits, TABLE, scales=scales), tmp_path / "m.tflite"
    write(path, look_up_graph(), [weight], {TABLE: BITS[bits]})
    np.testing.assert_array_equal(looked_up(path, resolver), values(weight))


@each_width
def test_a_row_of_activations_is_rounded_to_8_bits(bits, tmp_path):
    """By one scale for each row of the input, as with codes in blocks."""
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    write(path, graph(lambda f: f.multiply(MATRIX, ROWS, COLUMNS, 4)), [weight], {MATRIX: BITS[bits]})
    x = np.random.default_rng(3).normal(size=(4, COLUMNS)).astype(np.float32)
    x[:, 0] = 8
    expected = x @ values(weight).T
    error = np.abs(run(path, **{f"x:{MATRIX}": x})[f"y:{MATRIX}"] - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05


@each_width
@pytest.mark.parametrize("scale", [0.0, 1e-39, -0.5])
def test_xnnpack_refuses_scales_that_are_not_written(bits, scale, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_taken", lambda name, scales, type_name, multiplied: scales)
    scales = np.full(ROWS, 0.5)
    scales[3] = scale
    write(tmp_path / "m.tflite", product_graph(), [rows_of(bits, scales=scales)], {MATRIX: BITS[bits]})
    with pytest.raises(RuntimeError, match="unsupported datatype"):
        multiplied(tmp_path / "m.tflite")


# what is written


@each_width
def test_codes_lie_lowest_bits_first(bits):
    codes = values(rows_of(bits, scales=np.ones(ROWS))).astype(np.int8)
    packed = pack_codes(codes, bits)
    each = np.arange(8 // bits)
    bytes_ = ((codes.reshape(-1, 8 // bits).astype(int) % 2**bits) << (bits * each)).sum(axis=1)
    np.testing.assert_array_equal(packed, bytes_)


@each_width
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "computed"])
def test_it_is_read_back_to_the_bit(bits, stored, tmp_path):
    weight, path = rows_of(bits, stored=stored), tmp_path / "m.tflite"
    write(path, product_graph(functions=2), [weight], {MATRIX: BITS[bits]})
    found = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    assert (found.type, found.bytes) == (BITS[bits], ROWS * COLUMNS * bits // 8 + ROWS * 4)
    np.testing.assert_array_equal(found.floats(0, ROWS), values(weight))
    np.testing.assert_array_equal(found.floats(7, 9), values(weight)[7:9])
    np.testing.assert_array_equal(found.rule(0, ROWS), values(weight))


@each_width
def test_rows_of_zeros_have_a_scale_that_the_runtime_takes(bits, tmp_path):
    scales = np.full(ROWS, 0.5)
    scales[5] = 0
    weight, path = rows_of(bits, scales=scales), tmp_path / "m.tflite"
    write(path, product_graph(), [weight], {MATRIX: BITS[bits]})
    np.testing.assert_allclose(multiplied(path), values(weight), rtol=2e-6)
    found = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    np.testing.assert_array_equal(found.floats(0, ROWS), values(weight))


@pytest.mark.parametrize("scale", [1e-39, -0.5])
def test_scales_that_products_do_not_take_are_refused_before_the_runtime_does(scale, tmp_path):
    weight = rows_of(4, scales=np.full(ROWS, scale), stored=False)
    with pytest.raises(TargetError, match=r"has the scale .*, which XNNPACK refuses in INT4 per row"):
        write(tmp_path / "m.tflite", product_graph(), [weight], {MATRIX: BITS[4]})


def test_a_matrix_with_scales_below_float32s_normal_numbers_is_float():
    weights = {name: rows_of(4, name, scales=np.full(ROWS, 1e-39)) for name in (TABLE, MATRIX)}
    types = {one.stored_as: one.type for one in planned_tensors(weights, frozenset(), tied_head=True)}
    assert types == {TABLE: "INT4 per row", MATRIX: "FLOAT", HEAD: "FLOAT"}


def test_rows_that_are_no_whole_bytes_are_refused(tmp_path):
    weight = rows_of(2, shape=(ROWS, 30))
    with pytest.raises(TargetError, match=r"takes it as \[48, 30\], which INT2 per row with 48 scales"):
        write(tmp_path / "m", product_graph(columns=30), [weight], {MATRIX: BITS[2]})


def test_functions_share_codes_scales_and_zero_points(tmp_path):
    weight = rows_of(2, shape=(4096, 64))
    sizes = []
    for functions in (1, 2):
        layout = lay_out(product_graph(4096, 64, functions), {MATRIX: weight}, {MATRIX: BITS[2]})
        sizes.append(len(layout.head))
    assert 4096 * 12 < sizes[0] < sizes[1] < sizes[0] + 2048


def test_codes_of_another_type_than_the_checkpoints_are_read_without_a_rule(tmp_path):
    """As those of a baseline are."""
    weight, path = rows_of(2), tmp_path / "m.tflite"
    naive = naively_rounded(weight, Q4_0)
    type_name = planned_tensors({MATRIX: naive}, frozenset({MATRIX}), tied_head=False)[0].type
    assert type_name == "INT4+sums"
    write(path, product_graph(), [naive], {MATRIX: type_name})
    found = describe_models(open_models(path), {MATRIX: weight})[MATRIX]
    assert (found.type, found.rule) == (type_name, None)
    rows = naive.codes(0, ROWS)
    np.testing.assert_array_equal(found.floats(0, ROWS), rows.codes * np.repeat(rows.scales, 32, axis=1))


# read back from damaged files


@pytest.fixture
def model(tmp_path):
    """A parsed model, its weight, and a function that reads the weight from the model packed anew."""
    import flatbuffers

    weight, path = rows_of(4), tmp_path / "m.tflite"
    write(path, product_graph(), [weight], {MATRIX: BITS[4]})
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (tensor,) = (one for one in parsed.subgraphs[0].tensors if one.name == MATRIX.encode())
    for field in ("scale", "zeroPoint"):
        setattr(tensor.quantization, field, getattr(tensor.quantization, field).copy())
    end = path.read_bytes()[parsed.buffers[tensor.buffer].offset :]

    def read():
        builder = flatbuffers.Builder(0)
        builder.Finish(parsed.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
        data += bytes(parsed.buffers[tensor.buffer].offset - len(data)) + end
        path.write_bytes(data)
        return describe_models(open_models(path), {MATRIX: weight})[MATRIX]

    return tensor, weight, read


def test_a_scale_that_was_changed_is_read(model):
    tensor, weight, read = model
    tensor.quantization.scale[7] *= 1 + 2**-20
    assert np.flatnonzero((read().floats(0, ROWS) != values(weight)).any(axis=1)).tolist() == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.zeroPoint.__setitem__(5, 1), "has zero points"),
        (lambda one: setattr(one, "quantizedDimension", 1), "or other scales than theirs"),
        (lambda one: setattr(one, "scale", one.scale[:1]), "has not a scale and a zero point for each"),
        (lambda one: setattr(one, "zeroPoint", None), "has not a scale and a zero point for each"),
    ],
    ids=["zero point", "dimension", "one scale", "no zero points"],
)
def test_what_is_not_read_is_refused(model, change, message):
    tensor, _, read = model
    change(tensor.quantization)
    with pytest.raises(CheckpointError, match=message):
        read()


def test_one_scale_is_a_difference_of_the_graph(tmp_path):
    weight, path = rows_of(4), tmp_path / "m.tflite"
    write(path, product_graph(), [weight], {MATRIX: BITS[4]})
    data = bytearray(path.read_bytes())
    (place,) = find_all(data, values_of_scales(weight))
    contents = [read_content(bytes(data), len(data), path)]
    data[place + 4] ^= 1
    contents.append(read_content(bytes(data), len(data), path))
    found = [
        next(one.fields["quantization scales"] for one in content.functions[0].tensors if one.name == MATRIX)
        for content in contents
    ]
    assert found[0] != found[1]


def values_of_scales(weight):
    return weight.scales(0, ROWS).tobytes()


def find_all(data, content):
    return [place for place in range(len(data)) if data.startswith(content, place)]


# run without rounding


@each_width
def test_widened_codes_are_multiplied_without_rounding(bits, tmp_path):
    weight, path = rows_of(bits), tmp_path / "m.tflite"
    write(path, graph(lambda f: f.multiply(MATRIX, ROWS, COLUMNS, 4)), [weight], {MATRIX: BITS[bits]})
    with open(tmp_path / "wide.tflite", "wb") as output:
        widen(open_models(path)[0], output)
    x = np.random.default_rng(3).normal(size=(4, COLUMNS)).astype(np.float32)
    found = run(tmp_path / "wide.tflite", **{f"x:{MATRIX}": x})[f"y:{MATRIX}"]
    np.testing.assert_allclose(found, x @ values(weight).T, rtol=1e-4, atol=1e-5)


@each_width
def test_a_table_that_is_also_multiplied_is_widened_whole(bits, tmp_path):
    def build(function):
        function.look_up(TABLE, ROWS, COLUMNS, ROWS)

    def product(function):
        function.multiply(TABLE, ROWS, COLUMNS, 4)

    weight, path = rows_of(bits, TABLE), tmp_path / "m.tflite"
    write(path, graph(build, product), [weight], {TABLE: BITS[bits]})
    with open(tmp_path / "wide.tflite", "wb") as output:
        widen(open_models(path)[0], output)
    np.testing.assert_array_equal(looked_up(tmp_path / "wide.tflite"), values(weight))


def test_the_status_of_rows_counts_what_lies_on_no_lattice():
    weight = rows_of(4)
    assert set(encoding.encode(weight, BITS[4], 0, ROWS, multiplied=True).statuses) == {EXACT}
