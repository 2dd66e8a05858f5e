"""The GGUF of every architecture computes in llama.cpp what transformers computes.

The checkpoints lie on no lattice and their matrices are stored as float32, so that nothing but the
runtimes' arithmetic differs.
"""

from __future__ import annotations

import pytest

from support.divergence import OTHER_SETTINGS, divergence_from_transformers
from validation.runtimes.llamacpp import runner

pytestmark = pytest.mark.slow

#: Mean KL divergence allowed; llama.cpp's GELU comes from a float16 table.
LIMIT = 1e-4
#: Experts whose router scores nearly tie change places between two float32 implementations.
LIMIT_WITH_EXPERTS = 1e-2

VARIANTS = ["e2b", "e4b", "12b", "26b-a4b", "31b", "text", "gemma3", "gemma3-text"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_agrees_with_transformers(variant, checkpoint_factory, convert, tmp_path):
    limit = LIMIT_WITH_EXPERTS if variant == "26b-a4b" else LIMIT
    made = convert(checkpoint_factory(variant, "latent"), off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < limit


@pytest.mark.parametrize("variant", ["e2b", "31b", "gemma3"])
def test_the_layout_that_transformers_saves_gives_the_same_bytes(variant, checkpoint_factory, convert):
    hub = convert(checkpoint_factory(variant, layout="hub"))
    resaved = convert(checkpoint_factory(variant, layout="transformers"))
    assert hub.artifact.read_bytes() == resaved.artifact.read_bytes()


def test_an_untied_head_is_kept(checkpoint_factory, convert, tmp_path):
    directory = checkpoint_factory("31b", "latent", tied=False)
    made = convert(directory, off_lattice="f32")
    assert "output.weight" in {tensor.stored_as for tensor in made.plan.tensors}
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT


@pytest.mark.parametrize(("variant", "text"), OTHER_SETTINGS.values(), ids=list(OTHER_SETTINGS))
def test_other_settings_reach_llama_cpp(variant, text, checkpoint_factory, convert, tmp_path):
    made = convert(checkpoint_factory(variant, "latent", text=text), off_lattice="f32")
    assert divergence_from_transformers(made.checkpoint, made.artifact, runner, tmp_path) < LIMIT
