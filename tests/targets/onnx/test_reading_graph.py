"""ONNX graphs that are damaged, hostile or of another model."""

from __future__ import annotations

import re
import subprocess
import sys

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converter.checkpoint.opened import open_checkpoint
from converter.errors import CheckpointError
from support.onnx_reading import (
    CODES,
    initializer,
    load,
    read_all,
    refused,
    user,
)
from targets.onnx.reading import describe

pytestmark = pytest.mark.slow


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
