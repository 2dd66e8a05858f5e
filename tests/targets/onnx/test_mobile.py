"""Checkpoints in Gemma's mobile form as ONNX: types, codes and scales, and what onnxruntime makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from converter.checkpoint.opened import open_checkpoint
from support.divergence import divergence_from_transformers
from support.onnx_weights import DATA, computed, write
from targets.onnx import target
from targets.onnx.storage import Storage, scales_name, stored_name
from validation.exactness import measure
from validation.runtimes.onnxruntime import runner

pytestmark = pytest.mark.slow

WIDE = {"hidden_size": 256}
#: Weights of the published scheme, by the type that holds them.
CELLS = {
    "layers.0.self_attn.q_proj.weight": "INT4/128",
    "layers.0.mlp.down_proj.weight": "INT4/128",
    "layers.5.mlp.down_proj.weight": "INT2/128",
    "layers.5.mlp.up_proj.weight": "INT2/128",
    "embed_tokens.weight": "INT2/128",
    "lm_head.weight": "INT2/128",
    "embed_tokens_per_layer.weight": "INT4/64",
    "per_layer_model_projection.weight": "INT8/128",
    "layers.3.per_layer_projection.weight": "INT8",
}
MULTIPLIED, LOOKED_UP = "layers.0.mlp.up_proj.weight", "embed_tokens.weight"
#: Mean KLD of onnxruntime from transformers: in float32, and with activations rounded to 8 bits.
UNROUNDED, ROUNDED = 1e-6, 2e-2


@pytest.fixture
def published(mobile_factory, convert):
    """A checkpoint of the published scheme."""
    return convert(mobile_factory("text", WIDE), "onnx")


@pytest.fixture
def uniform(mobile_factory) -> Callable[..., Path]:
    """``uniform(bits)``: a checkpoint with codes of so many bits everywhere."""

    def make(bits: int, **options: object) -> Path:
        text = options.pop("text", None)
        return mobile_factory("text", text, rules={"model|lm_head": {"num_bits": bits}}, **options)

    return make


def initializers(artifact: Path) -> dict[str, NDArray[np.generic]]:
    """By the onnx package's own reader."""
    model = onnx.load(str(artifact))
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def unpacked(data: NDArray[np.uint8], bits: int) -> NDArray[np.int16]:
    """Codes ``[rows, columns]`` of the bytes of an initializer, by the operators' documentation."""
    places = np.arange(0, 8, bits)
    fields = data.reshape(len(data), -1, 1).astype(np.int16) >> places & (1 << bits) - 1
    return fields.reshape(len(data), -1) - (1 << bits - 1)


@pytest.mark.parametrize("name", CELLS)
def test_codes_and_scales_are_those_of_the_checkpoint(published, name: str) -> None:
    (planned,) = (one for one in published.plan.tensors if one.weight == name)
    weight = published.checkpoint.weights[name]
    assert (planned.type, planned.exact, planned.scales) == (CELLS[name], True, "F32")
    rows, found = weight.codes(0, weight.rows), initializers(published.artifact)
    np.testing.assert_array_equal(unpacked(found[stored_name(name)], weight.lattice.bits), rows.codes)
    scales = found[scales_name(name)]
    assert (scales.dtype, scales.shape[1] > 1) == (np.float32, weight.columns > 128 or name.endswith("layer"))
    np.testing.assert_array_equal(scales, np.broadcast_to(rows.scales, scales.shape))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_and_look_ups_are_the_float_ones_to_the_bit(uniform, bits: int, tmp_path: Path) -> None:
    """Each matrix by an identity, and each row of the embeddings, in onnxruntime."""
    checkpoint = open_checkpoint(uniform(bits, extremes=True))
    path = write(checkpoint, tmp_path, Storage()).path
    run = computed(path, checkpoint.weights[LOOKED_UP].rows)
    for name, weight in checkpoint.weights.items():
        if weight.lattice is not None and name != "lm_head.weight":
            assert weight.lattice.bits == bits
            np.testing.assert_array_equal(run[stored_name(name)], weight.floats(0, weight.rows), err_msg=name)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("size", "block"), [(128, "/128"), (192, "/64"), (160, ""), (80, "/16")])
def test_a_row_is_the_largest_blocks_that_divide_it(
    uniform, bits: int, size: int, block: str, tmp_path: Path
) -> None:
    """``down_proj`` of the inner size, read back and multiplied with."""
    checkpoint = open_checkpoint(uniform(bits, text={"intermediate_size": size}))
    weight = checkpoint.weights["layers.0.mlp.down_proj.weight"]
    made = write(checkpoint, tmp_path, Storage())
    stored = target.describe(made.path, checkpoint)[weight.name]
    assert (weight.columns, stored.type) == (size, f"INT{bits}{block}")
    run = computed(made.path, checkpoint.weights[LOOKED_UP].rows)[stored.stored_as]
    for values in (stored.floats(0, weight.rows), stored.rule(0, weight.rows), run):
        np.testing.assert_array_equal(values, weight.floats(0, weight.rows))


def test_rows_that_fit_no_blocks_are_float32_and_told(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", {"intermediate_size": 200}), "onnx")
    (planned,) = (one for one in made.plan.tensors if one.weight == "layers.0.mlp.down_proj.weight")
    assert (planned.type, planned.exact) == ("FLOAT", True)
    warning, _ = made.plan.warnings
    assert warning.endswith(
        "have codes that no type of onnx holds: 3 are stored as FLOAT, without loss, as their rows fit no "
        "blocks (the first is layers.0.mlp.down_proj.weight, with an input dimension of 200)"
    )
    exactness = measure(made.checkpoint, target.describe(made.artifact, made.checkpoint))
    assert exactness.count("wrong") == 0


@pytest.mark.parametrize(
    "options", [{}, {"extremes": True}, {"head": "tied"}, {"head": "numbers"}, {"blocks": 6}]
)
def test_everything_is_as_planned_and_exact(mobile_factory, convert, options) -> None:
    """With ``extremes``, scales are 0, 1e-40, and so large that float16 does not hold them."""
    made = convert(mobile_factory("text", WIDE, **options), "onnx")
    assert target.differences(made.artifact, made.checkpoint, made.plan) == []
    exactness = measure(made.checkpoint, target.describe(made.artifact, made.checkpoint))
    assert exactness.count("exact_blocks") == exactness.count("blocks") > 0
    assert all(one.wrong == 0 for one in exactness.off_lattice)
    (warning,) = made.plan.warnings
    assert "static scales of activations" in warning
    inferred = target.infer_options(made.artifact, made.checkpoint)
    assert target.plan(made.checkpoint, "model", inferred).tensors == made.plan.tensors


def test_a_tied_head_of_2_bits_shares_the_embedding_s_bytes(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", WIDE, head="tied"), "onnx")
    assert not [one for one in made.plan.tensors if one.weight == "lm_head.weight"]
    assert "model.lm_head.scales" not in initializers(made.artifact)


def test_float16_scales_are_told_where_they_lose_something(mobile_factory, convert) -> None:
    made = convert(mobile_factory("text", WIDE, extremes=True), "onnx", onnx_scales="f16")
    types = {one.weight: one.type for one in made.plan.tensors}
    assert types["layers.0.self_attn.q_proj.weight"] == "FLOAT"
    assert any("outside float16's range" in line for line in made.plan.warnings)


# what is wrong


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("part", ["code", "scale"])
@pytest.mark.parametrize("name", [MULTIPLIED, LOOKED_UP])
def test_a_code_or_a_scale_that_is_one_off_is_told(
    uniform, convert, bits: int, part: str, name: str, tmp_path: Path
) -> None:
    """The scale by one unit in its last place."""
    made = convert(uniform(bits), "onnx")
    for file in made.artifact.parent.iterdir():
        shutil.copy(file, tmp_path)
    wanted = stored_name(name) if part == "code" else scales_name(name)
    model = onnx.load(str(made.artifact), load_external_data=False)
    (one,) = (one for one in model.graph.initializer if one.name == wanted)
    offset = int(next(entry.value for entry in one.external_data if entry.key == "offset"))
    data = bytearray((tmp_path / DATA).read_bytes())
    data[offset] ^= 1
    (tmp_path / DATA).write_bytes(data)
    artifact = tmp_path / made.artifact.name
    (told,) = target.differences(artifact, made.checkpoint, made.plan)
    assert told.deciding
    assert stored_name(name) in told.where
    exactness = measure(made.checkpoint, target.describe(artifact, made.checkpoint))
    assert exactness.count("wrong") == 1
    assert [one.weight for one in exactness.tensors if one.wrong] == [name]


# logits


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_computes_what_transformers_does(uniform, convert, bits: int, tmp_path: Path) -> None:
    made = convert(uniform(bits, activations=False), "onnx")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < UNROUNDED


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize(
    ("variant", "options"),
    [("text", {"text": WIDE, "extremes": True}), ("e2b", {"blocks": 6}), ("text", {"head": "copied"})],
)
def test_other_checkpoints_are_computed_too(
    mobile_factory, convert, level: int, variant: str, options, tmp_path: Path
) -> None:
    made = convert(mobile_factory(variant, activations=False, **options), "onnx", accuracy_level=level)
    found = divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path)
    assert found < (ROUNDED if level else UNROUNDED)


@pytest.mark.slow
def test_onnxruntime_runs_a_tied_head_of_2_bits(mobile_factory, convert, tmp_path: Path) -> None:
    """transformers loads no packed embedding that a head is tied to: here the head is a copy for it."""
    tied = convert(mobile_factory("text", WIDE, activations=False, head="tied"), "onnx")
    copied = open_checkpoint(mobile_factory("text", WIDE, activations=False, head="copied"))
    assert divergence_from_transformers(copied, tied.artifact, runner, tmp_path) < UNROUNDED
