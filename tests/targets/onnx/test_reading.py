"""Weights read back from ONNX files: of every form, and from damaged or hostile ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.opened import open_checkpoint
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from support.onnx_weights import DATA, computed, external, write
from targets.onnx.reading import describe, files
from targets.onnx.storage import Storage, expert_name, stored_name

CODES = "model.layers.0.mlp.down_proj.weight"
SCALES = "model.layers.0.mlp.down_proj.scales"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def checkpoint(checkpoint_factory):
    return open_checkpoint(checkpoint_factory("text"))


@pytest.fixture(scope="module")
def original(checkpoint, tmp_path_factory):
    return write(checkpoint, tmp_path_factory.mktemp("onnx")).path


@pytest.fixture
def artifact(original, tmp_path):
    """A copy to damage."""
    for file in (original, original.with_name(DATA)):
        shutil.copy(file, tmp_path)
    return tmp_path / original.name


def load(path):
    return onnx.load(path, load_external_data=False)


def initializer(model, name):
    return next(one for one in model.graph.initializer if one.name == name)


def user(model, name):
    return next(node for node in model.graph.node if name in node.input)


def entry(tensor, key):
    return next(one for one in tensor.external_data if one.key == key)


def read_all(path, checkpoint):
    found = describe(path, checkpoint)
    return {name: found[name].floats(0, weight.rows) for name, weight in checkpoint.weights.items()}


def refused(path, checkpoint, message):
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(path, checkpoint)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert str(path.parent) in str(error.value)


def as_bf16(values):
    return bf16_floats(bf16_bits(values))


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


def test_files_are_the_graph_and_its_data(artifact):
    assert files(artifact) == [artifact, artifact.with_name(DATA)]
    artifact.with_name(DATA).unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data: missing"):
        files(artifact)


def test_missing_data_are_one_line(artifact, checkpoint):
    artifact.with_name(DATA).unlink()
    refused(artifact, checkpoint, r"model\.onnx\.data: cannot be opened: No such file")


def test_data_that_are_no_regular_file_are_refused(artifact, checkpoint):
    artifact.with_name(DATA).unlink()
    os.mkfifo(artifact.with_name(DATA))
    refused(artifact, checkpoint, r"model\.onnx\.data: is not a regular file")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_data_that_are_cut_off_are_one_line(share, artifact, checkpoint):
    data = artifact.with_name(DATA)
    os.truncate(data, int(share * data.stat().st_size))
    refused(
        artifact, checkpoint, r"model\.onnx\.data: cut off, or another model's: initializer .* ends at byte"
    )


def test_data_that_become_shorter_while_they_are_read_are_one_line(artifact, checkpoint):
    found = describe(artifact, checkpoint)
    os.truncate(artifact.with_name(DATA), 64)
    with pytest.raises(
        CheckpointError, match=r"model\.onnx\.data: ends within initializer .*the file is cut off"
    ):
        found["embed_tokens.weight"].floats(0, 100)


def test_corrupt_data_change_what_is_read(artifact, checkpoint):
    offset = int(entry(initializer(load(artifact), CODES), "offset").value)
    data = bytearray(artifact.with_name(DATA).read_bytes())
    data[offset] ^= 0x11
    artifact.with_name(DATA).write_bytes(data)
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    found = describe(artifact, checkpoint)[weight.name].floats(0, weight.rows)
    assert np.flatnonzero(as_bf16(found) != weight.floats(0, weight.rows)).tolist() == [0, 1]


@pytest.mark.parametrize(
    "location", ["../model.onnx.data", "/etc/passwd", "a/../../x", "", ".", "a\\b", "..", "x\n", "\x1b[2J"]
)
def test_data_outside_the_model_s_directory_are_refused(location, artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, NORM), "location").value = location
    onnx.save(model, artifact)
    refused(artifact, checkpoint, r"model\.norm\.weight.*no file below the model's directory|regular file")
    if location not in (".",):
        with pytest.raises(CheckpointError):
            files(artifact)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-1", "offset '-1', expected a number"),
        ("offset", "1e3", "offset '1e3', expected a number"),
        ("offset", "9" * 18, "cut off, or another model's"),
        ("offset", "9" * 5000, "offset '9+.*expected a number"),
        ("offset", "٣", "expected a number"),
        ("length", "3", "has 3 bytes, its shape .* takes"),
        ("length", "x", "length 'x', expected a number"),
    ],
)
def test_places_that_are_no_places_are_refused(key, value, message, artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, CODES), key).value = value
    onnx.save(model, artifact)
    refused(artifact, checkpoint, message)


def test_bytes_of_another_place_are_read_as_they_lie(artifact, checkpoint):
    model = load(artifact)
    entry(initializer(model, CODES), "offset").value = "0"
    onnx.save(model, artifact)
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    found = describe(artifact, checkpoint)[weight.name].floats(0, weight.rows)
    assert np.mean(as_bf16(found) == weight.floats(0, weight.rows)) < 0.5


def dims(*shape):
    def change(model, node, tensor):
        del tensor.dims[:]
        tensor.dims.extend(shape)

    return change


def attribute(**values):
    def change(model, node, tensor):
        for one in [one for one in node.attribute if one.name in values]:
            node.attribute.remove(one)
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in values.items() if value is not None
        )

    return change


def inputs(index, name):
    def change(model, node, tensor):
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = name

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dims(-1, 4, 16), "is out of bounds"),
        (dims(1 << 60, 1 << 60), "is out of bounds"),
        (dims(*[1] * 9), "is out of bounds"),
        (dims(1 << 40, 1 << 40), "which its node does not take"),
        (dims(), "which its node does not take"),
        (attribute(bits=3), "codes of 3 bits, which are not read"),
        (attribute(bits="four"), r"codes of \(\) bits"),
        (attribute(bits=8), "which its node does not take"),
        (attribute(block_size=0), "blocks of 0 codes"),
        (attribute(block_size=None), "which its node does not take"),
        (attribute(block_size=[32]), r"blocks of \(32,\) codes"),
        (attribute(N=None), "is used with N None"),
        (attribute(K=[32, 32]), r"K \(32, 32\)"),
        (attribute(K=-32), "which its node does not take"),
        (attribute(N=7), "which its node does not take"),
        (inputs(3, "x"), "zero points"),
        (inputs(4, "x"), "an order of its own"),
        (inputs(2, "x"), "has scales that no initializer holds"),
        (inputs(2, ""), "has scales that no initializer holds"),
        (inputs(2, "model.norm.weight"), r"model\.norm\.weight' has shape .*, expected"),
        (inputs(2, CODES), "has shape|is used by"),
        (inputs(1, "x"), "is used by no node"),
        (lambda model, node, tensor: setattr(node, "op_type", "Relu"), "is used by 'com.microsoft.Relu'"),
        (lambda model, node, tensor: setattr(node, "domain", "evil"), "is used by 'evil.MatMulNBits'"),
        (lambda model, node, tensor: setattr(tensor, "data_type", 99), "type 99, which ONNX does not know"),
        (lambda model, node, tensor: setattr(tensor, "data_type", TensorProto.INT8), "has type INT8"),
        (lambda model, node, tensor: setattr(tensor, "name", "else"), "down_proj.weight is missing"),
        (lambda model, node, tensor: model.graph.initializer.append(tensor), "is there twice"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(change, message, artifact, checkpoint):
    model = load(artifact)
    change(model, user(model, CODES), initializer(model, CODES))
    onnx.save(model, artifact)
    refused(artifact, checkpoint, message)


def test_scales_that_are_made_of_themselves_are_refused(artifact, checkpoint):
    model = load(artifact)
    user(model, CODES).input[2] = "a"
    model.graph.node.append(helper.make_node("Cast", ["b"], ["a"], to=1))
    model.graph.node.append(helper.make_node("Identity", ["a"], ["b"]))
    onnx.save(model, artifact)
    refused(artifact, checkpoint, "has scales that no initializer holds")


def test_codes_that_two_nodes_read_in_two_ways_are_refused(artifact, checkpoint):
    model = load(artifact)
    other = onnx.NodeProto.FromString(user(model, CODES).SerializeToString())
    other.output[0] = "other"
    other.input[2] = "model.layers.1.mlp.down_proj.scales"
    model.graph.node.append(other)
    onnx.save(model, artifact)
    refused(artifact, checkpoint, "is used in two ways")


def test_the_graph_of_another_model_is_refused(artifact, checkpoint_factory):
    refused(artifact, open_checkpoint(checkpoint_factory("31b")), r"is missing|shape")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it holds 0 graphs"),
        (b"hello, this is no model", "not a whole ONNX model|holds 0 graphs"),
        (b"\x3a\xff\xff\xff\xff\x0f", "a field reaches beyond its end"),
        (b"\xff" * 20, "a number has no end"),
        (b"\x3a\x00\x3a\x00", "it holds 2 graphs"),
        (b"\x3a\x04\x0a\x02\x0a\x09", "a part of its graph is damaged"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "a part of its graph is damaged"),
        (b"\x3b\x3c", "a field reaches beyond its end"),
    ],
)
def test_what_is_no_model_is_refused(content, message, artifact, checkpoint):
    artifact.write_bytes(content)
    refused(artifact, checkpoint, message)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_a_graph_with_changed_bytes_is_read_or_refused_in_one_line(changes, original, artifact, checkpoint):
    data = bytearray(original.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    artifact.write_bytes(data)
    refusals: list[str] = []
    try:
        read_all(artifact, checkpoint)
    except CheckpointError as error:
        refusals.append(str(error))
    assert all(line.isprintable() for line in refusals)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_graph_that_is_cut_off_is_refused(share, original, artifact, checkpoint):
    data = original.read_bytes()
    artifact.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"not a whole ONNX model|holds 0 graphs|is missing"):
        describe(artifact, checkpoint)


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(b"\x0a\x00" * (20 << 20), id="nodes"),
        pytest.param(b"\x5a\x00" * (20 << 20), id="inputs"),
        pytest.param(field(1, b"\x0a\x00" * (2 << 20)) * 8, id="connections"),
        pytest.param(field(1, b"\x2a\x00" * (2 << 20)) * 8, id="attributes"),
        pytest.param(field(1, field(5, field(6, b"\x0a\x00" * ((2 << 20) - 64)))) * 8, id="inner nodes"),
        pytest.param(field(1, bytes(8 << 20)), id="one large node"),
    ],
)
def test_a_graph_that_would_fill_the_memory_is_refused_in_little(graph, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, graph))
    script = (
        "import resource, sys; from pathlib import Path; from targets.onnx.protobuf import read_graph\n"
        "from converter.errors import CheckpointError\n"
        "limit = 900 << 20; resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        "try: read_graph(Path(sys.argv[1]))\n"
        "except CheckpointError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60
    )
    assert re.fullmatch(
        r".*model\.onnx: (its graph has more than|a part of its graph has) .*not read\n", done.stderr
    )


def test_a_file_larger_than_any_graph_is_refused(tmp_path, checkpoint):
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    refused(path, checkpoint, "larger than the")


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
    assert found.type == f"INT{bits}"
    np.testing.assert_array_equal(found.floats(0, rows), expected.T)
