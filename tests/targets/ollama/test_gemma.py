"""What a Gemma's Modelfile says."""

from __future__ import annotations

import pytest

from converter.errors import TargetError
from targets.ollama import Model, family_modelfile

E2B, A12B, A26B, A31B = 5_100_000_000, 11_900_000_000, 26_000_000_000, 31_000_000_000


def made(parameters, family="gemma4", per_layer_embeddings=None, options=None, **described):
    """The Modelfile of a Gemma of so many weights; of the published ones, E2B has per-layer embeddings."""
    own = parameters == E2B if per_layer_embeddings is None else per_layer_embeddings
    return family_modelfile("m.gguf", Model(family, parameters, own, **described), **(options or {}))


def parameters(modelfile):
    return dict(modelfile.parameters)


def test_gemma4_has_renderer_parser_stop_and_version():
    modelfile = made(E2B, context=131072)
    assert (modelfile.renderer, modelfile.parser, modelfile.requires) == ("gemma4-small", "gemma4", "0.30.0")
    assert parameters(modelfile) == {
        "temperature": "1.0",
        "top_p": "0.95",
        "top_k": "64",
        "num_ctx": "8192",
        "stop": "<turn|>",
    }
    assert (modelfile.system, modelfile.licenses) == (None, ())


def test_the_12b_needs_a_later_ollama():
    assert made(A12B).requires == "0.30.5"
    assert made(A12B, per_layer_embeddings=True).requires == made(A31B).requires == "0.30.0"


@pytest.mark.parametrize("parameters", [10**6, E2B, A12B, A26B, A31B])
@pytest.mark.parametrize(
    ("per_layer_embeddings", "renderer"), [(True, "gemma4-small"), (False, "gemma4-large")]
)
def test_the_architecture_alone_decides_the_renderer(parameters, per_layer_embeddings, renderer):
    assert made(parameters, per_layer_embeddings=per_layer_embeddings).renderer == renderer


def test_gemma3_uses_the_chat_template_in_the_gguf():
    modelfile = made(4_000_000_000, "gemma3")
    assert (modelfile.renderer, modelfile.parser, modelfile.requires) == (None, None, None)
    assert parameters(modelfile)["stop"] == "<end_of_turn>"


def test_what_is_given_wins():
    sampling = {"temperature": 0.3, "top_k": 20}
    options = {"num_ctx": 2048, "system": "Be brief.", "licenses": ["Apache-2.0"]}
    modelfile = made(E2B, sampling=sampling, options=options)
    found = parameters(modelfile)
    assert (found["temperature"], found["top_p"], found["top_k"], found["num_ctx"]) == (
        "0.3",
        "0.95",
        "20",
        "2048",
    )
    assert (modelfile.system, modelfile.licenses) == ("Be brief.", ("Apache-2.0",))


def test_the_context_is_never_longer_than_the_trained_one():
    assert parameters(made(E2B, context=512))["num_ctx"] == "512"


def test_another_family_is_refused():
    with pytest.raises(TargetError, match="ollama: the family llama is not known; known: gemma3, gemma4"):
        made(E2B, "llama")
