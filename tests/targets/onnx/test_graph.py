"""What the graph consists of, and what onnxruntime's own operators cannot do."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from checkpoints.variants import VARIANTS
from converter.checkpoint.opened import open_checkpoint
from support.onnx_reading import load
from targets.onnx import target

pytestmark = pytest.mark.slow


def external(initializer):
    return {entry.key: entry.value for entry in initializer.external_data}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_checker_finds_nothing(variant, checkpoint_factory, convert):
    made = convert(checkpoint_factory(variant), "onnx")
    onnx.checker.check_model(str(made.artifact), full_check=False)
    graph = load(made.artifact).graph
    assert {node.domain for node in graph.node} <= {"", "com.microsoft"}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_matrix_on_the_lattice_is_used_as_codes(variant, checkpoint_factory, convert):
    made = convert(checkpoint_factory(variant), "onnx")
    graph = load(made.artifact).graph
    used = Counter(node.op_type for node in graph.node)
    on_lattice = [tensor for tensor in made.plan.tensors if tensor.type == "INT4"]
    embeddings = [tensor for tensor in on_lattice if tensor.weight.startswith("embed_tokens")]
    experts = [tensor for tensor in on_lattice if len(tensor.shape) == 3]
    assert used["GatherBlockQuantized"] == len(embeddings)
    # the head multiplies with the embedding's codes
    assert used["MatMulNBits"] == (
        len(on_lattice) - len(embeddings) + 1 + sum(tensor.shape[0] - 1 for tensor in experts)
    )
    routers = [tensor for tensor in made.plan.tensors if "router.proj" in tensor.weight]
    assert used["MatMul"] == len(routers)


def test_the_tied_head_names_the_bytes_of_the_embedding(checkpoint_factory, convert):
    made = convert(checkpoint_factory("12b"), "onnx")
    graph = load(made.artifact).graph
    named = {initializer.name: external(initializer) for initializer in graph.initializer}
    assert named["model.lm_head.weight"] == named["model.embed_tokens.weight"]
    (head,) = (node for node in graph.node if "model.lm_head.weight" in node.input)
    assert head.input[2] == "model.embed_tokens.scales"
    assert made.artifact.with_name("model.onnx.data").stat().st_size < 1.01 * made.plan.bytes + 64 * len(
        named
    )


def test_a_head_of_its_own_has_its_own_codes(checkpoint_factory, convert):
    made = convert(checkpoint_factory("12b", tied=False), "onnx")
    named = {one.name: external(one) for one in load(made.artifact).graph.initializer}
    assert named["model.lm_head.weight"]["offset"] != named["model.embed_tokens.weight"]["offset"]


def test_rotations_take_no_room(checkpoint_factory, convert):
    """Neither a table for the context in the data, nor one in the graph."""
    short = convert(checkpoint_factory("e2b"), "onnx")
    long = convert(checkpoint_factory("e2b", text={"max_position_embeddings": 1 << 20}), "onnx")
    assert long.artifact.stat().st_size == short.artifact.stat().st_size < 400_000
    assert long.plan.bytes == short.plan.bytes


def test_every_layer_attends_with_group_query_attention(checkpoint_factory, convert):
    made = convert(checkpoint_factory("e2b"), "onnx")
    layers = made.checkpoint.architecture.layers
    graph = load(made.artifact).graph
    assert sum(node.op_type == "GroupQueryAttention" for node in graph.node) == len(layers)
    owners = sum(layer.kv_source is None for layer in layers)
    assert owners < len(layers)
    assert sum(one.name.startswith("past_key_values.") for one in graph.input) == 2 * owners
    assert sum(one.name.startswith("present.") for one in graph.output) == 2 * owners


def test_equal_conversions_give_equal_bytes(checkpoint_factory, tmp_path):
    checkpoint = open_checkpoint(checkpoint_factory("26b-a4b"))

    def digests(name):
        plan = target.plan(checkpoint, "model", {})
        target.write(checkpoint, plan, tmp_path / name)
        files = [*plan.artifacts, *plan.companions]
        return {file: hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for file in files}

    assert digests("one") == digests("two")


def test_the_graph_names_nothing_of_this_machine(checkpoint_factory, convert):
    made = convert(
        checkpoint_factory("e2b"), "onnx", license="apache-2.0", repo="google/x", revision="1" * 40
    )
    model = load(made.artifact)
    assert model.producer_name == "qatconvert"
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "license": "apache-2.0",
        "repo": "google/x",
        "revision": "1" * 40,
    }
    content = made.artifact.read_bytes()
    assert str(made.checkpoint.source.directory()).encode() not in content
    assert b"site-packages" not in content


def test_qmoe_has_no_gated_tanh_gelu_on_cpu():
    """The reason for a composition of experts; once this fails, the operator may serve."""
    experts, hidden, inner = 2, 32, 32
    arrays = {
        "fc1": np.zeros((experts, 2 * inner, hidden // 2), np.uint8),
        "fc1_scales": np.ones((experts, 2 * inner, 1), np.float32),
        "fc2": np.zeros((experts, hidden, inner // 2), np.uint8),
        "fc2_scales": np.ones((experts, hidden, 1), np.float32),
    }
    node = helper.make_node(
        "QMoE",
        ["x", "probabilities", "fc1", "fc1_scales", "", "fc2", "fc2_scales"],
        ["y"],
        domain="com.microsoft",
        activation_type="geglu",
        swiglu_fusion=2,
        k=1,
        block_size=32,
        expert_weight_bits=4,
    )
    rows = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, hidden])]
    rows.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, experts]))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, hidden])
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "experts", rows, [result], initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Exception, match="geglu"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("variant", ["e2b", "12b", "26b-a4b", "gemma3"])
def test_both_layouts_of_a_configuration_give_the_same_artifact(variant, checkpoint_factory, convert):
    hub = convert(checkpoint_factory(variant, layout="hub"), "onnx").artifact
    saved = convert(checkpoint_factory(variant, layout="transformers"), "onnx").artifact
    assert hub.read_bytes() == saved.read_bytes()
    assert (hub.parent / "model.onnx.data").read_bytes() == (saved.parent / "model.onnx.data").read_bytes()
