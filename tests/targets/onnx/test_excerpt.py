"""An excerpt of an ONNX model: the artifact's own nodes of some layers, connected anew."""

from __future__ import annotations

import onnx
import pytest

from checkpoints.variants import TEN_LAYERS
from converter.checkpoint.excerpt import find_excerpt
from converter.errors import ValidationError
from converter.system.progress import no_progress
from validation.runtimes.onnxruntime import runner


@pytest.fixture(scope="module")
def e2b(checkpoint_factory, convert):
    return convert(checkpoint_factory("e2b", text=TEN_LAYERS), "onnx")


@pytest.fixture(scope="module")
def excerpt(e2b):
    return find_excerpt(e2b.checkpoint.architecture)


@pytest.fixture(scope="module")
def cut(e2b, excerpt, tmp_path_factory):
    path, choice = runner.unrounded(e2b.artifact, tmp_path_factory.mktemp("cut"), no_progress, excerpt)
    assert choice == {"accuracy_level": 0, "static_activations": False, "decode": False}
    return path


def read(path):
    return onnx.load(str(path), load_external_data=False)


def edited(made, directory, change):
    """A copy of an artifact's graph, changed; its data is not read where the graph is refused."""
    model = read(made.artifact)
    change(model.graph)
    path = directory / "wrong.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_its_nodes_are_the_artifacts_but_for_what_connects_layers(e2b, cut):
    whole = {node.name: node for node in read(e2b.artifact).graph.node}
    nodes = read(cut).graph.node
    assert 0 < len(nodes) < len(whole)
    changed = []
    for node in nodes:
        own = whole[node.name]
        assert (node.op_type, node.domain, list(node.output)) == (own.op_type, own.domain, list(own.output))
        assert list(node.attribute) == list(own.attribute)
        pairs = zip(own.input, node.input, strict=True)
        changed += [(node.op_type, before[:16], after[:16]) for before, after in pairs if before != after]
    # layer 9 reads, for its first norm and to add to it, what layer 5 gives
    assert changed == [
        ("RMSNormalization", "v_model.layers.8", "v_model.layers.5"),
        ("SkipSimplifiedLayerNormalization", "v_model.layers.8", "v_model.layers.5"),
    ]


def test_only_the_kept_layers_weights_are_left(e2b, excerpt, cut):
    names = {one.name for one in read(cut).graph.initializer}
    layers = {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}
    assert layers == set(excerpt.layers)
    inputs = {value.name for value in read(cut).graph.input}
    assert {name for name in inputs if name.startswith("past_")} == {
        f"past_key_values.{layer}.{kind}" for layer in range(5) for kind in ("key", "value")
    }


def test_weights_are_the_artifacts_bytes(e2b, cut):
    whole, part = (onnx.load(str(path)).graph.initializer for path in (e2b.artifact, cut))
    data = {one.name: one.raw_data for one in whole}
    assert all(one.raw_data == data[one.name] for one in part)


def test_its_size_is_known_before(e2b, excerpt, cut):
    size = sum(file.stat().st_size for file in cut.parent.iterdir())
    assert runner.unrounded_bytes(e2b.artifact, excerpt) == size
    assert runner.unrounded_bytes(e2b.artifact) == 0


def test_the_checker_takes_it(cut):
    onnx.checker.check_model(str(cut))


def rename_norm(graph):
    for node in graph.node:
        for index, value in enumerate(node.input):
            if value == "model.layers.6.input_layernorm.weight":
                node.input[index] = "model.layers.7.input_layernorm.weight"


def read_a_left_out_layer(graph):
    node = next(node for node in graph.node if "model.layers.9.mlp.up_proj.weight" in node.input)
    node.input[1] = "model.layers.7.mlp.up_proj.weight"


def data_elsewhere(graph):
    one = next(one for one in graph.initializer if one.name == "model.norm.weight")
    next(entry for entry in one.external_data if entry.key == "location").value = "../model.onnx.data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_norm, "0 nodes read 'model.layers.6.input_layernorm.weight', expected one"),
        (
            read_a_left_out_layer,
            "layer 7 cannot be left out, 'model.layers.7.mlp.up_proj.weight' is still read",
        ),
        (data_elsewhere, "the data of 'model.norm.weight' are not told or not beside the model"),
    ],
)
def test_a_graph_of_another_shape_is_refused(change, message, e2b, excerpt, tmp_path):
    wrong = edited(e2b, tmp_path, change)
    with pytest.raises(ValidationError) as caught:
        runner.unrounded_bytes(wrong, excerpt)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
