"""The ONNX of every architecture computes in onnxruntime what transformers computes.

Where the checkpoints lie on no lattice and their matrices are kept as float32, nothing but the runtimes'
arithmetic differs.
"""

from __future__ import annotations

import pytest

from checkpoints.variants import VARIANTS
from support.divergence import OTHER_SETTINGS, divergence_from_transformers
from validation.runtimes.onnxruntime import runner

pytestmark = pytest.mark.slow

#: Mean KL divergence allowed between two float32 implementations.
LIMIT = 1e-6


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_onnxruntime_agrees_with_transformers(variant, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory(variant, "latent"), "onnx", off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize(("variant", "text"), OTHER_SETTINGS.values(), ids=list(OTHER_SETTINGS))
def test_other_settings_reach_onnxruntime(variant, text, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory(variant, "latent", text=text), "onnx", off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize(("experts", "active"), [(1, 1), (8, 8), (33, 5)])
def test_any_number_of_experts_is_used(experts, active, checkpoint_factory, convert, tmp_path):
    text = {"num_experts": experts, "top_k_experts": active}
    made = convert(checkpoint_factory("26b-a4b", "latent", text=text), "onnx", off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize("variant", ["e2b", "gemma3"])
def test_a_head_of_its_own_is_used(variant, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory(variant, "latent", tied=False), "onnx", off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize("variant", ["e2b", "26b-a4b", "gemma3"])
@pytest.mark.parametrize("type", ["bf16", "f16"])
def test_matrices_kept_in_two_bytes_are_computed_in_four(
    variant, type, checkpoint_factory, convert, tmp_path
):
    made = convert(checkpoint_factory(variant, "latent"), "onnx", off_lattice=type)
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize("variant", ["e2b", "12b", "26b-a4b", "gemma3"])
def test_float16_scales_cost_nothing(variant, checkpoint_factory, convert, tmp_path):
    """Every scale of this lattice is a float16 number, so both artifacts mean the same weights."""
    whole = convert(checkpoint_factory(variant), "onnx")
    half = convert(checkpoint_factory(variant), "onnx", onnx_scales="f16")
    expected = divergence_from_transformers(whole.checkpoint, whole.artifact, runner, tmp_path)
    found = divergence_from_transformers(half.checkpoint, half.artifact, runner, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("variant", ["e2b", "12b", "26b-a4b", "gemma3"])
def test_float16_activations_run_on_the_cpu_too(variant, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory(variant), "onnx", onnx_dtype="float16")
    # near-ties of the router flip in a mixture of experts of random weights
    limit = 0.03 if variant == "26b-a4b" else 2e-3
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < limit


def test_an_embedding_with_float16_scales_is_computed_in_float32(checkpoint_factory, convert, tmp_path):
    """Products of a code and a float16 scale need more digits than float16 has."""
    options = {"off_lattice": "q8_0", "accuracy_level": 0}
    directory = checkpoint_factory("gemma3", "latent")
    whole = convert(directory, "onnx", **options)
    half = convert(directory, "onnx", onnx_scales="f16", **options)
    expected = divergence_from_transformers(whole.checkpoint, whole.artifact, runner, tmp_path)
    found = divergence_from_transformers(half.checkpoint, half.artifact, runner, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3)
