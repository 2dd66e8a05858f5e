"""An excerpt of a LiteRT graph: the artifact's own operators of some layers, connected anew."""

from __future__ import annotations

import re
import time
from collections import Counter

import numpy as np
import pytest

from converter.checkpoint.excerpt import find_excerpt
from converter.system.progress import no_progress

pytest.importorskip("litert_torch")
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from converter.checkpoint.excerpt import Excerpt
from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from converter.errors import ValidationError
from targets.litert.excerpt import _Function
from targets.litert.reading import describe, open_models
from targets.litert.schema import Operator, Subgraph, Tensor
from targets.litert.tables import Flatbuffer
from validation.excerpt import cut_checkpoint, cut_tensors
from validation.runtimes.litert import runner

MATRIX = re.compile(r"layers\.([0-9]+)\.")


@pytest.fixture(scope="module")
def bundle(litert_bundle):
    return litert_bundle("demo")


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(DEMO)


@pytest.fixture(scope="module")
def excerpt(checkpoint):
    """Layers 0-2, 6 and 8 of 9: 3 to 5 are the last with caches of their own."""
    found = find_excerpt(checkpoint.architecture)
    assert found.layers == (0, 1, 2, 6, 8)
    return found


@pytest.fixture(scope="module")
def cut(bundle, excerpt, tmp_path_factory):
    path, choice = runner.unrounded(bundle, tmp_path_factory.mktemp("cut"), no_progress, excerpt)
    assert choice == {}
    return path


def functions(path):
    """Subgraphs of the one model in a file, by the names of their signatures."""
    (model,) = open_models(path)
    data = model.shard.read(model.start, model.size, "the model")
    parsed = schema.ModelT.InitFromPackedBuf(data, 0)
    return {one.signatureKey.decode(): parsed.subgraphs[one.subgraphIndex] for one in parsed.signatureDefs}


def options_of(operator):
    """Kinds and values of an operator's options."""
    found = []
    for options in (operator.builtinOptions, operator.builtinOptions2):
        values = {} if options is None else vars(options)
        found.append((type(options).__name__, {name: str(value) for name, value in values.items()}))
    return found


def name_of(graph, index):
    return graph.tensors[index].name.decode() if index >= 0 else "-"


@pytest.mark.parametrize("function", ["decode", "prefill_128"])
def test_its_operators_are_the_artifacts_but_for_what_connects_layers(function, bundle, cut):
    whole, part = (functions(path)[function] for path in (bundle, cut))
    known = {tuple(one.outputs): one for one in whole.operators}
    assert 0 < len(part.operators) < len(whole.operators)
    changed = []
    for operator in part.operators:
        own = known[tuple(operator.outputs)]
        assert operator.opcodeIndex == own.opcodeIndex
        assert options_of(operator) == options_of(own)
        changed += [
            (before, after)
            for before, after in zip(own.inputs, operator.inputs, strict=True)
            if before != after
        ]
    if function == "prefill_128":  # it computes caches alone, and the first layers follow each other
        assert changed == []
        return
    moved = Counter((name_of(whole, before), name_of(whole, after), before) for before, after in changed)
    # layer 6 reads, for its first norm and to add to it, what layer 2 gives, and layer 8 what layer 6 does
    assert [times for (before, *_), times in moved.items() if "kv_cache" not in before] == [2, 2]
    # for the caches of layers 4 and 5 stand those of layers 1 and 2
    assert {(before, after) for before, after, _ in moved if "kv_cache" in before} == {
        (f"decode_kv_cache_{kind}_{late}_output", f"decode_kv_cache_{kind}_{early}_output")
        for kind in "kv"
        for late, early in ((4, 1), (5, 2))
    }


@pytest.mark.parametrize(("function", "layers"), [("decode", {0, 1, 2, 6, 8}), ("prefill_128", {0, 1, 2})])
def test_only_the_kept_layers_are_computed(function, layers, cut):
    graph = functions(cut)[function]
    read = {name_of(graph, index) for one in graph.operators for index in one.inputs}
    assert {int(found[1]) for name in read if (found := MATRIX.match(name))} == layers


def test_signatures_have_the_caches_of_the_kept_layers(cut):
    interpreter = Interpreter(model_path=str(cut))
    for name, signature in interpreter.get_signature_list().items():
        for values in (signature["inputs"], signature["outputs"]):
            assert {value for value in values if "cache" in value} == {
                f"kv_cache_{kind}_{layer}" for kind in "kv" for layer in range(3)
            }, name


def test_weights_are_the_artifacts_as_floats(bundle, cut, checkpoint, excerpt):
    stored = describe(bundle, checkpoint)
    part = cut_checkpoint(checkpoint, excerpt)
    expected = cut_tensors(stored, part, excerpt)
    (model,) = open_models(cut)
    tensors = {tensor.name: tensor for subgraph in model.subgraphs for tensor in subgraph.tensors}
    for place, layer in enumerate(excerpt.layers):
        for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight", "per_layer_projection.weight"):
            tensor = tensors[f"layers.{layer}.{name}"]
            data = model.shard.read(model.start + tensor.buffer.offset, tensor.buffer.size, name)
            values = np.frombuffer(data, "<f4").reshape(tensor.shape)
            own = expected[f"layers.{place}.{name}"].floats(0, tensor.shape[0])
            np.testing.assert_array_equal(values, own)


def test_a_table_that_is_only_looked_up_keeps_its_codes(cut, bundle, tmp_path):
    for path in (cut, runner.unrounded(bundle, tmp_path, no_progress)[0]):
        (model,) = open_models(path)
        types = {tensor.name: tensor.type for subgraph in model.subgraphs for tensor in subgraph.tensors}
        assert types["embed_tokens_per_layer.weight"] == 17  # INT4
        assert types["embed_tokens.weight"] == 0  # the head multiplies with it
        assert types["layers.8.mlp.up_proj.weight"] == 0


def test_its_size_is_known_before(bundle, cut, excerpt):
    known = runner.unrounded_bytes(bundle, excerpt)
    assert known < runner.unrounded_bytes(bundle)
    taken = cut.stat().st_blocks * 512  # holes take nothing
    assert taken < cut.stat().st_size
    assert abs(taken - known) < 1 << 19


def renamed(bundle, directory, before, after):
    """A copy of a bundle in which a tensor has the name of another."""
    data = bundle.read_bytes()
    assert len(before) == len(after)
    assert data.count(before.encode()) > 0
    path = directory / "wrong.litertlm"
    path.write_bytes(data.replace(before.encode(), after.encode()))
    return path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("layers.7.self_attn.q_proj", "layers.7.self_attn.x_proj", "no norm stands before layer 7"),
        (
            "layers.7.self_attn.q_proj",
            "layers.6.self_attn.q_proj",
            "matrices of layer 6 do not read the same norm",
        ),
        (
            "layers.8.mlp.up_proj.weight",
            "layers.7.mlp.up_proj.weight",
            "layer 7 cannot be left out, 'layers.7.mlp.up_proj.weight' is still read",
        ),
    ],
)
def test_a_graph_of_another_shape_is_refused(before, after, message, bundle, excerpt, tmp_path):
    wrong = renamed(bundle, tmp_path, before, after)
    with pytest.raises(ValidationError) as caught:
        runner.unrounded_bytes(wrong, excerpt)
    assert f"cannot be cut to some of its layers: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_an_excerpt_of_another_model_is_refused(bundle):
    other = Excerpt((0, 1), 12, 12, ("sliding",) * 12)
    with pytest.raises(ValidationError, match="no norm stands before layer 9"):
        runner.unrounded_bytes(bundle, other)


def overwritten(bundle, directory, place_of, content):
    """A copy of a bundle with other bytes in its graph, at the place that ``place_of`` finds there."""
    (model,) = open_models(bundle)
    graph = Flatbuffer(model.shard.read(model.start, model.size, "the graph"), AssertionError, 1 << 20)
    data = bytearray(bundle.read_bytes())
    place = model.start + place_of(list(graph.root().tables(7)))  # signatures
    data[place : place + len(content)] = content
    path = directory / "wrong.litertlm"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("place_of", "content", "message"),
    [
        (
            lambda signatures: next(iter(signatures[0].tables(1))).where(1),
            b"\xff\xff\xff\xff",
            "an input or output is no tensor of its function",
        ),
        (lambda signatures: signatures[1].where(4), b"\xff\xff\0\0", "a signature is of function 65535 of "),
        (lambda signatures: signatures[1].where(4), b"\0\0\0\0", "a signature is of function 0 of "),
    ],
    ids=["tensor", "function", "function-twice"],
)
def test_signatures_that_lead_nowhere_are_refused(place_of, content, message, bundle, excerpt, tmp_path):
    wrong = overwritten(bundle, tmp_path, place_of, content)
    with pytest.raises(ValidationError) as caught:
        runner.unrounded_bytes(wrong, excerpt)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [1, 3, 8])
def test_a_layer_that_is_not_found_is_named(layer, bundle, tmp_path):
    data = bundle.read_bytes()
    for kind in "qkv":
        name = f"layers.{layer}.self_attn.{kind}_proj"
        data = data.replace(name.encode(), f"layers.{layer}.self_attn.x_proj".encode())
    wrong = tmp_path / "wrong.litertlm"
    wrong.write_bytes(data)
    attention = ("sliding", "sliding", "full") * 3
    with pytest.raises(ValidationError, match=f"no norm stands before layer {layer}"):
        runner.unrounded_bytes(wrong, Excerpt((0, 2, 5, 8), 9, 6, attention))


def test_a_long_operator_that_many_ask_for_is_read_once(excerpt):
    """Time that grows with the product of two numbers of a stranger's would be without end."""
    count = 20_000
    tensors = tuple(
        Tensor("layers.0.self_attn.q_proj.weight" if index == 1 else "", 0, (1,), None, None, None, False)
        for index in range(count + 2)
    )
    norm = Operator(206, (0, *(-1,) * count), tuple(range(2, count + 2)))
    products = tuple(Operator(9, (value, 1), ()) for value in range(2, count + 2))
    found = _Function.__new__(_Function)
    found._whole, found._excerpt = Subgraph(tensors, (norm, *products)), excerpt
    found._makers, found._variables = {value: norm for value in norm.outputs}, {}
    begin = time.process_time()
    assert found._found() == {0: 0}
    assert time.process_time() - begin < 5  # a scan of each list for each product takes many times as long


def test_a_graph_whose_products_take_two_rows_is_cut_as_well(litert_bundle, tmp_path):
    bundle = litert_bundle("demo", activations="2")
    checkpoint = open_checkpoint(DEMO)
    excerpt = find_excerpt(checkpoint.architecture)
    form, choice = runner.unrounded(bundle, tmp_path, lambda done, total: None, excerpt)
    output, vocabulary = tmp_path / "logits.npy", checkpoint.architecture.vocabulary
    run = runner.logits(form, [[2, 20, 30]], vocabulary, output, lambda done, total: None, choice=choice)
    assert run.settings["rounded_activations"] is False
    assert np.isfinite(np.load(output)).all()
