"""Weights read back from ONNX files, of every form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import Weight
from support.onnx_reading import (
    CODES,
    SCALES,
    as_bf16,
    load,
    refused,
    user,
)
from support.onnx_weights import DATA, computed, external, write
from targets.onnx.reading import describe
from targets.onnx.storage import Storage, expert_name, stored_name


def assert_all_exact(path, checkpoint):
    found = describe(path, checkpoint)
    assert list(found) == list(checkpoint.weights)
    for name, weight in checkpoint.weights.items():
        assert found[name].shape == weight.shape
        values = as_bf16(found[name].floats(0, weight.rows))
        np.testing.assert_array_equal(values, weight.floats(0, weight.rows), err_msg=name)


@pytest.mark.parametrize("scales", ["FLOAT", "FLOAT16"])
@pytest.mark.parametrize("scheme", ["max7", "max8", "extremum8", "learned"])
def test_every_weight_reads_back_bit_for_bit(scheme, scales, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("e2b", scheme))
    made = write(checkpoint, tmp_path, Storage(scales=scales))
    assert_all_exact(made.path, checkpoint)
    for name, one in describe(made.path, checkpoint).items():
        tensor = made.layout.places[name].tensor
        assert (one.stored_as, one.type, one.bytes) == (tensor.stored_as, tensor.type, tensor.bytes)


@pytest.mark.parametrize("variant", ["26b-a4b", "gemma3"])
@pytest.mark.parametrize("option", ["q8_0", "q4_0", "bf16", "f16", "f32"])
def test_what_is_read_is_what_onnxruntime_computes_with(variant, option, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory(variant, "latent"))
    path = write(checkpoint, tmp_path, Storage(off_lattice=option)).path
    run = computed(path, checkpoint.weights["embed_tokens.weight"].rows)
    for name, one in describe(path, checkpoint).items():
        weight = checkpoint.weights[name]
        if len(weight.shape) == 3:
            parts = [run[stored_name(expert_name(name, expert))] for expert in range(weight.shape[0])]
            expected = np.concatenate(parts)
        else:
            expected = run[one.stored_as].reshape(weight.rows, weight.columns)
        np.testing.assert_array_equal(one.floats(0, weight.rows), expected, err_msg=name)


@pytest.mark.parametrize("scheme", ["max7", "latent"])
def test_experts_are_stacked_to_the_rows_of_one_weight(scheme, checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("26b-a4b", scheme))
    path = write(checkpoint, tmp_path, Storage(off_lattice="bf16")).path
    weight = checkpoint.weights["layers.0.experts.down_proj"]
    one = describe(path, checkpoint)[weight.name]
    whole = one.floats(0, weight.rows)
    np.testing.assert_array_equal(as_bf16(whole), weight.floats(0, weight.rows))
    height, end = weight.shape[1], weight.rows
    for start, stop in [(0, 0), (1, 2), (height - 1, height + 1), (height, 3 * height), (5, 5), (end, end)]:
        np.testing.assert_array_equal(one.floats(start, stop), whole[start:stop])
    with pytest.raises(ValueError, match="rows"):
        one.floats(0, end + 1)


def numbers(values, wanted, how, tmp_path):
    """A model that computes with the matrix ``values`` as ``how`` says, stored as ``wanted``."""
    tensor = numpy_helper.from_array(values.astype(wanted), CODES)
    (tmp_path / DATA).write_bytes(bytes(64) + tensor.raw_data)
    if "inline" not in how:
        dtype = TensorProto.DataType.Name(tensor.data_type)
        tensor = external(CODES, dtype, values.shape, 64, len(tensor.raw_data))
    nodes, name = [], CODES
    for operator in how:
        if operator == "Transpose":
            nodes.append(helper.make_node("Transpose", [name], [f"{name}.t"], perm=[1, 0]))
            name += ".t"
        elif operator == "Cast":
            nodes.append(helper.make_node("Cast", [name], [f"{name}.c"], to=TensorProto.FLOAT))
            name += ".c"
    last = next(operator for operator in how if operator in ("MatMul", "Gemm", "Mul"))
    nodes.append(helper.make_node(last, ["x", name], ["y"], **({"transB": 1} if "transB" in how else {})))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", "k"])], [value("y", 1, ["n", "m"])], initializer=[tensor]
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("how", "transposed"),
    [
        (["Transpose", "MatMul"], False),
        (["Cast", "Transpose", "MatMul"], False),
        (["Transpose", "Cast", "MatMul"], False),
        (["MatMul"], True),
        (["Cast", "MatMul"], True),
        (["Transpose", "Transpose", "MatMul"], True),
        (["Gemm"], True),
        (["Gemm", "transB"], False),
        (["Mul"], False),
        (["inline", "Transpose", "MatMul"], False),
        (["inline", "MatMul"], True),
    ],
)
@pytest.mark.parametrize("wanted", [np.float32, np.float16])
def test_a_matrix_of_numbers_is_read_in_the_orientation_in_which_it_is_used(
    how, transposed, wanted, checkpoint, tmp_path
):
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    values = weight.floats(0, weight.rows).astype(wanted).astype(np.float32)
    path = numbers(values.T if transposed else values, wanted, how, tmp_path)
    only = replace(checkpoint, weights={weight.name: weight})
    one = describe(path, only)[weight.name]
    assert one.type == {np.float32: "FLOAT", np.float16: "FLOAT16"}[wanted]
    np.testing.assert_array_equal(one.floats(0, weight.rows), values)
    np.testing.assert_array_equal(one.floats(3, 9), values[3:9])
    wrong = numbers(values if transposed else values.T, wanted, how, tmp_path)
    refused(wrong, only, r"is used as a weight of shape .*, expected")


def test_scales_are_read_as_the_graph_casts_them(artifact, checkpoint):
    model = load(artifact)
    node = user(model, SCALES)
    node.input[2] = "scales"
    for dtype, name in ((TensorProto.FLOAT16, "half"), (TensorProto.FLOAT, "scales")):
        model.graph.node.insert(
            0, helper.make_node("Cast", [SCALES if name == "half" else "half"], [name], to=dtype)
        )
    onnx.save(model, artifact)
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    rows = weight.codes(0, weight.rows)
    scales = rows.scales.astype(np.float16).astype(np.float32)
    found = describe(artifact, checkpoint)[weight.name].floats(0, weight.rows)
    np.testing.assert_array_equal(found, rows.codes * np.repeat(scales, 32, axis=1))


def test_a_node_in_a_subgraph_is_found(artifact, checkpoint):
    model = load(artifact)
    node = user(model, CODES)
    branch = helper.make_graph([node], "then", [], [helper.make_tensor_value_info(node.output[0], 1, None)])
    model.graph.node.remove(node)
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    onnx.save(model, artifact)
    assert_all_exact(artifact, checkpoint)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("columns", "block"), [(40, 16), (96, 64), (128, 128), (64, 32)])
def test_codes_of_any_width_are_what_onnxruntime_multiplies_with(bits, columns, block, tmp_path):
    """Also where the last block of a row is not full."""
    random = np.random.default_rng(bits)
    rows, blocks = 48, -(-columns // block)
    codes = random.integers(0, 256, (rows, blocks, block * bits // 8), dtype=np.uint8)
    scales = random.standard_normal((rows, blocks)).astype(np.float32)
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    node = helper.make_node(
        "MatMulNBits", ["x", "model.w.weight", "s"], ["y"], domain="com.microsoft", **attributes
    )
    value = helper.make_tensor_value_info
    constants = [numpy_helper.from_array(codes, "model.w.weight"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph(
        [node], "g", [value("x", 1, ["n", columns])], [value("y", 1, None)], initializer=constants
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    weights = {"w.weight": Weight("w.weight", "w", (rows, columns), "BF16", lambda start, stop: expected.T)}
    found = describe(path, SimpleNamespace(weights=weights))["w.weight"]
    assert found.type == f"INT{bits}" + ("" if block == 32 else f"/{block}")
    np.testing.assert_array_equal(found.floats(0, rows), expected.T)
