"""Options, types and sizes of an ONNX artifact, before anything is written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.checkpoint.opened import open_checkpoint
from converter.errors import UsageError
from targets.onnx.layout import ALIGNMENT, PAGE, lay_out
from targets.onnx.storage import (
    Storage,
    expert_name,
    read_options,
    scales_name,
    stored_name,
)
from targets.storing import is_matrix
from targets.target import PlannedTensor


def test_defaults_are_float32_throughout():
    assert read_options({}) == Storage("FLOAT", "FLOAT", "q8_0", None)
    assert (
        read_options(dict.fromkeys(("onnx_dtype", "onnx_scales", "off_lattice", "accuracy_level")))
        == Storage()
    )


def test_scales_take_the_type_of_float16_activations():
    assert read_options({"onnx_dtype": "float16"}) == Storage("FLOAT16", "FLOAT16")
    assert read_options({"onnx_scales": "F16", "accuracy_level": 4}) == Storage("FLOAT", "FLOAT16", "q8_0", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"onnx_dtype": "bfloat16"}, r"activation type 'bfloat16' is unknown; known: float32, float16"),
        ({"onnx_scales": "f8"}, r"type of scales 'f8' is unknown; known: f32, f16"),
        (
            {"off_lattice": "q2"},
            r"off-lattice type 'q2' is unknown to onnx; known: q8_0, bf16, f16, q4_0, f32",
        ),
        ({"accuracy_level": 5}, r"accuracy level 5 is unknown; known: 0, 1, 2, 3, 4"),
        ({"accuracy_level": True}, r"accuracy level True is unknown"),
        ({"accuracy_level": "4"}, r"accuracy level '4' is unknown"),
        ({"onnx_dtype": "float16", "onnx_scales": "f32"}, r"float16 activations need float16 scales"),
    ],
)
def test_an_option_that_means_nothing_is_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as error:
        read_options(options)
    assert "\n" not in str(error.value)


def formats(checkpoint, storage):
    return {name: storage.held.type_of(weight) for name, weight in checkpoint.weights.items()}


def test_lattice_matrices_are_int4_and_the_rest_takes_the_activations_type(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("26b-a4b"))
    for name, format in formats(checkpoint, Storage("FLOAT16", "FLOAT16")).items():
        if name.endswith("router.proj.weight"):
            assert format == "FLOAT"
        else:
            assert format == ("INT4" if len(checkpoint.weights[name].shape) > 1 else "FLOAT16"), name
    assert set(formats(checkpoint, Storage()).values()) == {"INT4", "FLOAT"}


@pytest.mark.parametrize(
    ("option", "format"),
    [("q8_0", "INT8"), ("q4_0", "INT4"), ("bf16", "BFLOAT16"), ("f16", "FLOAT16"), ("f32", "FLOAT")],
)
def test_matrices_on_no_lattice_take_the_type_asked_for(option, format, checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    storage = Storage(off_lattice=option)
    found = formats(checkpoint, storage)
    assert {found[name] for name, weight in checkpoint.weights.items() if is_matrix(weight)} == {format}
    (warning,) = storage.held.warnings(checkpoint.weights.values())
    assert warning.startswith("onnx: 100.00% of the weights")
    assert warning.endswith(f"stored as {format}")


def test_rows_that_are_no_whole_blocks_keep_the_checkpoint_s_type_and_the_first_is_named(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent", text={"intermediate_size": 200}))
    found = formats(checkpoint, Storage())
    assert found["layers.0.mlp.down_proj.weight"] == "BFLOAT16"
    assert found["layers.0.mlp.up_proj.weight"] == "INT8"
    (warning,) = Storage().held.warnings(checkpoint.weights.values())
    assert warning.endswith(
        "matrices) lie on no lattice: 45 are stored as INT8; 6 keep the checkpoint's type, as their "
        "rows are no multiple of 32 (the first is layers.0.mlp.down_proj.weight, with an input dimension of "
        "200)"
    )


def test_no_format_is_named_that_no_matrix_gets(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", text={"hidden_size": 80}))
    (warning,) = Storage().held.warnings(checkpoint.weights.values())
    assert "lattice: 32 keep the checkpoint's type" in warning
    assert "INT8" not in warning


@pytest.mark.parametrize(
    ("scheme", "scales", "exact"),
    [
        ("max7", "FLOAT", True),
        ("max7", "FLOAT16", True),
        ("learned-f32", "FLOAT", True),
        ("learned-f32", "FLOAT16", False),
    ],
)
def test_a_lattice_matrix_is_exact_where_its_scales_are_kept(scheme, scales, exact, checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", scheme))
    weight = checkpoint.weights["embed_tokens.weight"]
    assert Storage(scales=scales).held.is_exact(weight, "INT4") is exact


def test_numbers_are_exact_in_the_checkpoint_s_type_and_in_float32(checkpoint_factory):
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    weight = checkpoint.weights["layers.0.mlp.up_proj.weight"]
    exact = {
        format
        for format in ("FLOAT", "FLOAT16", "BFLOAT16", "INT4", "INT8")
        if Storage().held.is_exact(weight, format)
    }
    assert exact == {"FLOAT", "BFLOAT16"}


def test_names_say_which_initializer_holds_what():
    assert stored_name("layers.0.mlp.down_proj.weight") == "model.layers.0.mlp.down_proj.weight"
    assert scales_name("layers.0.mlp.down_proj.weight") == "model.layers.0.mlp.down_proj.scales"
    expert = expert_name("layers.0.experts.gate_up_proj", 3)
    assert expert == "layers.0.experts.3.gate_up_proj.weight"
    assert scales_name(expert) == "model.layers.0.experts.3.gate_up_proj.scales"


@pytest.mark.parametrize("format", ["INT4", "INT8"])
def test_codes_of_rows_that_are_no_whole_blocks_have_no_size(format):
    with pytest.raises(ValueError, match="multiple"):
        Storage().held.row_bytes(format, 48)


def test_bytes_count_codes_and_scales(checkpoint_factory):
    weight = open_checkpoint(checkpoint_factory("text")).weights["embed_tokens.weight"]
    size = weight.columns
    assert Storage().held.row_parts("INT4", size) == (size // 2, size // 8, 0)
    assert Storage(scales="FLOAT16").held.row_parts("INT8", size) == (size, size // 16, 0)
    assert Storage().held.row_bytes("BFLOAT16", size) == 2 * size


SHAPES = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 70)),
    st.tuples(st.integers(1, 1 << 18), st.integers(1, 300).map(lambda blocks: 32 * blocks)),
    st.tuples(st.integers(1, 128), st.integers(1, 2000), st.integers(1, 90).map(lambda blocks: 32 * blocks)),
)


@given(
    st.lists(
        st.tuples(SHAPES, st.sampled_from(["INT4", "INT8", "FLOAT", "FLOAT16", "BFLOAT16"])), max_size=12
    ),
    st.sampled_from(["FLOAT", "FLOAT16"]),
)
def test_stretches_are_aligned_and_follow_one_another_without_overlap(given_tensors, scales):
    storage = Storage(scales=scales)
    tensors = [
        PlannedTensor(str(index), str(index), shape, format if len(shape) > 1 else "FLOAT", 0, True)
        for index, (shape, format) in enumerate(given_tensors)
    ]
    layout = lay_out(tensors, storage)
    assert list(layout.places) == [tensor.weight for tensor in tensors]
    end = 0
    for place in layout.places.values():
        for offset, size in ((place.offset, place.row_bytes), (place.scales_offset, place.scales_row_bytes)):
            if offset is None:
                continue
            step = PAGE if place.rows * size >= 1 << 20 else ALIGNMENT
            assert offset % step == 0
            assert end <= offset < end + step
            end = offset + place.rows * size
    assert layout.size == end


def test_planning_needs_neither_onnx_nor_a_runtime(checkpoint_factory):
    script = (
        "import sys; from pathlib import Path; from converter.checkpoint.opened import open_checkpoint\n"
        "import targets.onnx.packing, targets.onnx.writing; from targets.onnx.layout import lay_out\n"
        "from targets.onnx.storage import Storage; c = open_checkpoint(Path(sys.argv[1]))\n"
        "assert {Storage().held.type_of(w) for w in c.weights.values()} == {'INT4', 'FLOAT'}\n"
        "found = {'onnx', 'onnx_ir', 'mobius', 'onnxruntime', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script, str(checkpoint_factory("text"))], check=True)
