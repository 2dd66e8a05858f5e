"""Static grids of activations in the ONNX graph: where they stand, what they compute, what is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxscript import GraphBuilder
from transformers.integrations.gemma_quant import apply_srq

from checkpoints.mobile import mobile_tensors, write_packed
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.weight import Scales
from converter.errors import UsageError
from converter.pipeline.conversion import Conversion
from converter.pipeline.conversion import convert as run_conversion
from targets.onnx import target
from targets.onnx.grids import has_grids, without_grids
from targets.onnx.modules import FloatProjection, Gridded
from targets.target import Plan
from validation.proof import validate

pytestmark = pytest.mark.slow

STATIC = {"static_activations": True}
#: A module with both scales.
MODULE = "model.layers.0.self_attn.k_proj"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Converted:
    """A checkpoint, its plan and its artifact."""

    checkpoint: Checkpoint
    plan: Plan
    artifact: Path


@pytest.fixture(scope="module")
def varied(checkpoint_factory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed checkpoint in which each module has scales of its own. Equal ones share an initializer."""
    source = checkpoint_factory("text")
    tensors, config = mobile_tensors(source)
    for index, name in enumerate(sorted(name for name in tensors if name.endswith("_activation_scale"))):
        tensors[name] = (tensors[name] * np.float32(1 + index / 512)).astype(np.float32)
    return write_packed(source, tmp_path_factory.mktemp("varied") / "m", tensors, config)


@pytest.fixture
def gridded(varied: Path, convert: Callable[..., Any]) -> Any:
    """That one with the option."""
    return convert(varied, "onnx", **STATIC)


def scales(path: Path) -> dict[str, Floats]:
    """Scales of quantisations by initializer, once for each node."""
    graph = onnx.load(str(path), load_external_data=False).graph
    inline = {one.name: one for one in graph.initializer if one.data_location != onnx.TensorProto.EXTERNAL}
    return {
        node.input[1]: numpy_helper.to_array(inline[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_every_calibrated_module_has_its_own_scales(gridded) -> None:
    expected = {
        f"model.{module}.{role}_scale": scale[0]
        for module, one in gridded.checkpoint.scales.items()
        for role, scale in (("input", one.input), ("output", one.output))
        if scale is not None
    }
    assert f"{MODULE}.input_scale" in expected
    assert scales(gridded.artifact) == expected
    assert len(expected) == 2 * len(gridded.checkpoint.grids) == 50
    model = onnx.load(str(gridded.artifact), load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == operators.count("DequantizeLinear") == 50


def test_the_plan_and_what_the_artifact_shows_say_so(gridded) -> None:
    assert gridded.plan.applies_grids
    assert gridded.plan.options["static_activations"] is True
    assert target.infer_options(gridded.artifact, gridded.checkpoint)["static_activations"] is True
    assert target.differences(gridded.artifact, gridded.checkpoint, gridded.plan) == []
    (line,) = gridded.plan.warnings
    assert line == (
        "onnx: 3 caches of attentions have static scales of activations, which the model does not apply"
    )


def test_without_the_option_scales_are_told_and_not_applied(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text"), "onnx")
    assert not made.plan.applies_grids
    assert "static_activations" not in made.plan.options
    assert scales(made.artifact) == {}
    (line,) = made.plan.warnings
    assert line == (
        "onnx: 25 modules and 3 caches of attentions have static scales of activations, which the model does "
        "not apply; --static-activations applies those of the modules"
    )


@pytest.mark.parametrize("factory", ["mobile_factory", "checkpoint_factory"])
def test_the_option_is_refused_where_there_are_no_scales(factory: str, request) -> None:
    make, options = request.getfixturevalue(factory), {"activations": False} if "mobile" in factory else {}
    with pytest.raises(UsageError, match="--static-activations: the checkpoint has no static scales") as told:
        target.plan(open_checkpoint(make("text", **options)), "model", STATIC)
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="static_activations 'yes' is no true or false"):
        target.check({"static_activations": "yes"})


# arithmetic


def computed(scales: Scales, values: Floats, dtype: ir.DataType = ir.DataType.FLOAT) -> Floats:
    """A product with an identity that rounds by ``scales``, in onnxruntime."""
    size = values.shape[1]
    graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 23})
    builder = GraphBuilder(graph)
    x = builder.input("x", dtype=dtype, shape=["n", size])
    product = Gridded(FloatProjection([size, size], "FLOAT"), scales)
    product.product.weight.const_value = ir.tensor(np.eye(size, dtype=np.float32))
    builder.add_output(product(builder.op, x), "y")
    model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = values.astype(np.float16) if dtype == ir.DataType.FLOAT16 else values
    return session.run(None, {"x": given})[0]


def rounded(values: Floats, scale: Floats) -> Floats:
    return apply_srq(torch.tensor(values), torch.tensor(scale)).numpy()


@pytest.mark.parametrize("scale", [0.0625, 0.1, 1e-40, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("role", ["input", "output"])
def test_a_grid_is_transformers_own(scale: float, role: str) -> None:
    """Ties, edges and values far beyond them; scales below float32's normal numbers and near its end."""
    step = np.float32(scale)
    random = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    with np.errstate(over="ignore"):
        steps = np.linspace(-130, 130, 16 * 131, dtype=np.float32).reshape(-1, 16) * step
    values = np.concatenate([random, np.where(np.isfinite(steps), steps, 0), 100 * random])
    scales = Scales(**{role: np.array([step])})
    np.testing.assert_array_equal(computed(scales, values), rounded(values, np.array([step])))


def test_a_module_rounds_both_ends_and_channels_apart() -> None:
    values = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
    taken, given = np.array([0.05, 0.1, 0.5, 2], np.float32), np.array([0.3], np.float32)
    expected = rounded(rounded(values, taken), given)
    np.testing.assert_array_equal(computed(Scales(input=taken, output=given), values), expected)


def test_float16_activations_are_rounded_by_float32_scales() -> None:
    """A scale that float16 does not hold."""
    values = np.random.default_rng(2).standard_normal((64, 4)).astype(np.float16).astype(np.float32)
    scale = np.array([0.1], np.float32)
    found = computed(Scales(input=scale), values, ir.DataType.FLOAT16)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, rounded(values, scale).astype(np.float16))


# what is wrong


def _scale(model: onnx.ModelProto) -> None:
    """By one unit in the last place."""
    (one,) = (one for one in model.graph.initializer if one.name == f"{MODULE}.input_scale")
    value = np.nextafter(numpy_helper.to_array(one), np.float32(1))
    one.CopyFrom(numpy_helper.from_array(value, one.name))


def _others(model: onnx.ModelProto) -> None:
    """Another module's scale of the same size."""
    for node in model.graph.node:
        if (
            node.op_type in ("QuantizeLinear", "DequantizeLinear")
            and node.input[1] == f"{MODULE}.input_scale"
        ):
            node.input[1] = f"{MODULE}.output_scale"


def _missing(model: onnx.ModelProto) -> None:
    scale = f"{MODULE}.input_scale"
    (first,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[1] == scale)
    (last,) = (n for n in model.graph.node if first.output[0] in n.input)
    for node in model.graph.node:
        node.input[:] = [first.input[0] if name == last.output[0] else name for name in node.input]
    model.graph.node.remove(first)
    model.graph.node.remove(last)


def _all_missing(model: onnx.ModelProto) -> None:
    model.CopyFrom(onnx.ModelProto.FromString(without_grids(model.SerializeToString())))


def _more(model: onnx.ModelProto) -> None:
    """A grid at the end."""
    names = [
        f"{MODULE}.input_scale",
        next(n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"),
    ]
    for node in model.graph.node:
        node.output[:] = ["raw" if name == "logits" else name for name in node.output]
    model.graph.node.append(helper.make_node("QuantizeLinear", ["raw", *names], ["codes"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["codes", *names], ["logits"]))


@pytest.mark.parametrize("change", [_scale, _others, _missing, _all_missing, _more])
def test_a_wrong_grid_is_told(gridded, change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = onnx.load(str(gridded.artifact), load_external_data=False)
    change(model)
    for file in gridded.artifact.parent.iterdir():
        shutil.copy(file, tmp_path)
    artifact = tmp_path / gridded.artifact.name
    artifact.write_bytes(model.SerializeToString())
    assert [one for one in target.differences(artifact, gridded.checkpoint, gridded.plan) if one.deciding]


def test_an_artifact_with_grids_is_none_without_and_the_other_way_round(
    gridded, varied: Path, convert
) -> None:
    plain = convert(varied, "onnx")
    for artifact, plan in ((gridded.artifact, plain.plan), (plain.artifact, gridded.plan)):
        assert [one for one in target.differences(artifact, plain.checkpoint, plan) if one.deciding]


# without grids


def test_without_grids_it_is_the_model_that_has_none(gridded, varied: Path, convert) -> None:
    plain = convert(varied, "onnx").artifact.read_bytes()
    model = gridded.artifact.read_bytes()
    assert has_grids(model)
    left = without_grids(model)
    assert not has_grids(left)
    assert without_grids(left) == left

    def operators(model: bytes) -> list[str]:
        graph = onnx.ModelProto.FromString(model).graph
        return sorted(node.op_type for node in graph.node if node.op_type != "Constant")

    assert operators(left) == operators(plain)


def _pair(scale: str, zero: str, more: list[onnx.NodeProto] | None = None) -> bytes:
    """A model of one pair whose second node has ``scale`` and ``zero``."""
    names = {"s": np.float32(0.5), "t": np.float32(0.25), "z": np.uint8(128), "y": np.uint8(127)}
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", scale, zero], ["out"]),
    ]
    graph = helper.make_graph(
        [*nodes, *(more or [])],
        "g",
        [value("x", 1, ["n"])],
        [value("out", 1, ["n"])],
        [numpy_helper.from_array(np.array(one), name) for name, one in names.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_a_pair_that_is_no_grid_stays() -> None:
    """Then the graph computes otherwise, which a run without grids shows."""
    assert has_grids(_pair("s", "z"))
    (node,) = onnx.ModelProto.FromString(without_grids(_pair("s", "z"))).graph.node
    assert (node.op_type, node.input, node.output) == ("Identity", ["x"], ["out"])
    others = [helper.make_node("Cast", ["c"], ["d"], to=1)]
    for model in (_pair("t", "z"), _pair("s", "y"), _pair("s", "z", others)):
        assert not has_grids(model)
        assert len(onnx.ModelProto.FromString(without_grids(model)).graph.node) >= 2


# proof


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


def _prove(made: Any, artifact: Path, cache: Path, **settings: Any) -> dict[str, Any]:
    entry: dict[str, Any] = validate(
        made.checkpoint, "onnx", artifact, plan=made.plan, cache=cache, positions=96, **settings
    )["entry"]
    return entry


def _failed(entry: dict[str, Any]) -> set[str]:
    return {gate["name"] for gate in entry["gates"] if gate["passed"] is False}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"head": "tied"}, {"blocks": 6}])
def test_onnxruntime_rounds_as_transformers_does(mobile_factory, convert, cache: Path, options) -> None:
    """But for a value beside the edge of a grid, where the last bit decides over a step: a tenth of what the
    grids do, in these models, where none is there 3e-13."""
    made = convert(mobile_factory("text", **options), "onnx", **STATIC, accuracy_level=0)
    entry = _prove(made, made.artifact, cache)
    assert entry["passed"] is True, _failed(entry)
    grids, runtime = entry["activation_grids"], entry["runtime"]
    assert grids["applied"] is True
    assert grids["mean_kld"] > 0.05
    assert entry["logits"]["mean_kld"] == grids["mean_kld_artifact"] < 0.1 * grids["mean_kld"]
    assert runtime["mean_kld_own_weights"] == 0
    assert runtime["rounded_activations"] is True
    assert runtime["graph"]["mean_kld"] < 1e-9


@pytest.mark.slow
def test_the_checkpoint_s_own_text_has_limits_of_their_own_for_grids(
    varied: Path, tmp_path: Path, cache: Path
) -> None:
    """And those of artifacts without are not theirs."""
    text = " ".join(f"Word {number} is no other." for number in range(60))
    gates = {"onnx": {"mean_kld": 1e-20}, "onnx with grids": {"same_top_p": 1.5}}
    document = {"passages": [{"kind": "prose", "text": text}], "gates": gates}
    shutil.copytree(varied, tmp_path / "m")
    (tmp_path / "m" / "evaluation_text.json").write_text(json.dumps(document), "utf-8")
    checkpoint = open_checkpoint(tmp_path / "m")
    for options, name in (({}, "mean_kld"), (STATIC, "same_top_p")):
        plan = target.plan(checkpoint, "model", {**options, "accuracy_level": 0})
        target.write(checkpoint, plan, tmp_path / name)
        made = Converted(checkpoint, plan, tmp_path / name / plan.artifacts[0])
        assert _failed(_prove(made, made.artifact, cache)) == {name}


@pytest.mark.slow
def test_an_artifact_that_lost_its_grids_fails(gridded, cache: Path, tmp_path: Path) -> None:
    for file in gridded.artifact.parent.iterdir():
        shutil.copy(file, tmp_path)
    artifact = tmp_path / gridded.artifact.name
    artifact.write_bytes(without_grids(artifact.read_bytes()))
    entry = _prove(gridded, artifact, cache)
    assert _failed(entry) == {"mean_kld", "same_as_built"}
    (graph,) = (gate for gate in entry["gates"] if gate["name"] == "graph_kld")
    assert graph["passed"] is True  # which is of neither's grids


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, STATIC])
def test_a_conversion_is_proven_from_end_to_end(mobile_factory, tmp_path: Path, cache: Path, options) -> None:
    """From the command's own steps, with the report and the manifest as their schemas have them."""
    model, output = str(mobile_factory("e2b")), tmp_path / "out"
    settings = {"cache": cache, "positions": 64}
    warned: list[str] = []
    outcome = run_conversion(
        Conversion(model, ["onnx"], output, options=options, validation=settings), warn=warned.append
    )
    assert outcome.exit_status == 0
    entry = outcome.report["targets"]["onnx"]
    assert (entry["passed"], entry["weights"]["exact_fraction"]) == (True, 1.0)
    assert entry["activation_grids"]["applied"] is bool(options)
    recorded = json.loads((output / "manifest.json").read_text("utf-8"))["targets"]["onnx"]["options"]
    assert recorded.get("static_activations", False) is bool(options)
    assert entry["weights"]["formats"].keys() == {"INT2/128", "INT4/128", "INT4/64", "INT8", "INT8/128"}
    assert any("--static-activations" in line for line in warned) is not bool(options)
    if options:  # rounded once more, activations on a grid are on another: nothing is left of what grids do
        (rounded, exact) = entry["alternatives"]
        assert (rounded["passed"], exact["passed"], exact["chosen"]) == (False, True, True)
        (gate,) = (one for one in rounded["gates"] if one["passed"] is False)
        assert gate["name"] == "mean_kld"
        assert gate["limit"] == 0.5 * entry["activation_grids"]["mean_kld"]
        assert "half of what the static grids do" in gate["note"]
    else:  # float32 products of 2 and 8 bits take 300 times as long: where int8 activations pass, that is it
        assert "alternatives" not in entry
        assert entry["runtime"]["accuracy_level"] == 4
