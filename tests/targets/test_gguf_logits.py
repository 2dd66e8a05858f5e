"""The GGUF of every architecture computes in llama.cpp what transformers computes.

The checkpoints lie on no lattice and their matrices are stored as float32, so that nothing but the
runtimes' arithmetic differs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from validation.causal_model import write_logits
from validation.llamacpp import runner

#: Mean KL divergence allowed; llama.cpp's GELU comes from a float16 table.
LIMIT = 1e-4
#: Experts whose router scores nearly tie change places between two float32 implementations.
LIMIT_WITH_EXPERTS = 1e-2

VARIANTS = ["e2b", "e4b", "12b", "26b-a4b", "31b", "text", "gemma3", "gemma3-text"]


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean over positions of KL(reference || logits), in nats."""

    def log_softmax(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    expected, found = log_softmax(reference), log_softmax(logits)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def compare(convert, directory: Path, scratch: Path) -> float:
    made = convert(directory, off_lattice="f32")
    vocabulary = made.checkpoint.architecture.vocabulary
    random = np.random.default_rng(5)
    ids = [[2, *random.integers(300, 1200, 150).tolist()]]
    request = {
        "model": str(directory),
        "left_out": [one.name for one in made.checkpoint.left_out],
        "sequences": ids,
        "output": str(scratch / "reference.npy"),
        "dtype": "float32",
        "max_memory": None,
        "scratch": str(scratch),
    }
    write_logits(request, lambda done, total: None)
    output = scratch / "logits.npy"
    runner.logits(made.artifact, ids, vocabulary, output, lambda done, total: None)
    return divergence(np.load(scratch / "reference.npy"), np.load(output))


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_agrees_with_transformers(variant, checkpoint_factory, convert, tmp_path):
    limit = LIMIT_WITH_EXPERTS if variant == "26b-a4b" else LIMIT
    assert compare(convert, checkpoint_factory(variant, "latent"), tmp_path) < limit


@pytest.mark.parametrize("variant", ["e2b", "31b", "gemma3"])
def test_the_layout_that_transformers_saves_gives_the_same_bytes(variant, checkpoint_factory, convert):
    hub = convert(checkpoint_factory(variant, layout="hub"))
    resaved = convert(checkpoint_factory(variant, layout="transformers"))
    assert hub.artifact.read_bytes() == resaved.artifact.read_bytes()


def test_an_untied_head_is_kept(checkpoint_factory, convert, tmp_path):
    directory = checkpoint_factory("31b", "latent", tied=False)
    assert "output.weight" in {tensor.stored_as for tensor in convert(directory).plan.tensors}
    assert compare(convert, directory, tmp_path) < LIMIT


GEMMA4_ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "factor": 4.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
OTHERS = {
    "window": ("31b", {"sliding_window": 16}),
    "no softcap": ("31b", {"final_logit_softcapping": None}),
    "gemma4 rope": ("31b", {"rope_parameters": GEMMA4_ROPE}),
    "gemma3": ("gemma3-text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 16}),
}


@pytest.mark.parametrize(("variant", "text"), OTHERS.values(), ids=list(OTHERS))
def test_other_settings_reach_llama_cpp(variant, text, checkpoint_factory, convert, tmp_path):
    assert compare(convert, checkpoint_factory(variant, "latent", text=text), tmp_path) < LIMIT
