"""Models that llama.cpp cannot hold are refused before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.errors import TargetError, UsageError
from targets.gguf import target

S, F = "sliding_attention", "full_attention"
#: The last two of the four layers with their own KV are full, then sliding.
SWAPPED = {"num_hidden_layers": 6, "num_kv_shared_layers": 2, "layer_types": [S, S, F, S, S, F]}
ONLY_FULL = {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "layer_types": [F] * 4}


def opened(checkpoint_factory, variant="text", text: Mapping[str, object] | None = None) -> Checkpoint:
    return open_checkpoint(checkpoint_factory(variant, text=text) if text else checkpoint_factory(variant))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SWAPPED, "must be sliding and full, in this order"),
        (ONLY_FULL, "no layer has sliding attention"),
        ({"vocab_size_per_layer_input": 1000}, "1000 rows"),
        ({"head_dim": 33}, "odd head size, 33"),
    ],
)  # fmt: skip
def test_a_configuration_on_which_llama_cpp_fails(text, message, checkpoint_factory):
    with pytest.raises(TargetError, match=message) as error:
        target.plan(opened(checkpoint_factory, "text", text), "m", {})
    assert "\n" not in str(error.value)


def test_llama_cpp_indeed_aborts_on_swapped_layers(checkpoint_factory, llama, monkeypatch, tmp_path):
    checkpoint = opened(checkpoint_factory, "text", SWAPPED)
    monkeypatch.setattr("targets.gguf.artifact.check", lambda checkpoint: None)
    plan = target.plan(checkpoint, "m", {})
    target.write(checkpoint, plan, tmp_path)
    with pytest.raises(Exception, match=r"GGML_ASSERT\(map_layer_ids"):
        llama(tmp_path / plan.artifacts[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos": None}, "no token that begins a sequence"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"merges": ()}, "has no merges"),
        ({"space_prefix": True}, "space before the text"),
        ({"merges": (("a b", "c"),)}, "contains a space"),
        ({"tokens": ("a",)}, "1 tokens and the embedding"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow(change, message, checkpoint_factory):
    checkpoint = opened(checkpoint_factory)
    with pytest.raises(TargetError, match=message):
        target.plan(replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, **change)), "m", {})


def test_two_tokens_with_the_same_text(checkpoint_factory):
    checkpoint = opened(checkpoint_factory)
    tokens = (*checkpoint.tokenizer.tokens[:-1], "<bos>")
    with pytest.raises(TargetError, match="2 tokens have the text '<bos>'"):
        target.plan(replace(checkpoint, tokenizer=replace(checkpoint.tokenizer, tokens=tokens)), "m", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_scale": 0.5}, "scaled by 0.5"),
        ({"rope_theta": 7.0}, "one rope_theta for all sliding layers"),
        ({"rope_scaling_factor": 2.0}, "one rope_scaling_factor"),
        ({"head_dim": 64}, "one head_dim"),
    ],
)
def test_an_architecture_with_more_freedom_than_llama_cpp_s(change, message, checkpoint_factory):
    checkpoint = opened(checkpoint_factory, "31b")
    architecture = checkpoint.architecture
    if "attention_scale" in change:
        architecture = replace(architecture, **change)
    else:
        first, *rest = architecture.layers
        architecture = replace(architecture, layers=(replace(first, **change), *rest))
    with pytest.raises(TargetError, match=message):
        target.plan(replace(checkpoint, architecture=architecture), "m", {})


def test_sliding_layers_with_scaled_rope(checkpoint_factory):
    checkpoint = opened(checkpoint_factory, "31b")
    layers = tuple(
        replace(layer, rope_scaling_factor=2.0) if layer.attention == "sliding" else layer
        for layer in checkpoint.architecture.layers
    )
    architecture = replace(checkpoint.architecture, layers=layers)
    with pytest.raises(TargetError, match="RoPE of sliding attention"):
        target.plan(replace(checkpoint, architecture=architecture), "m", {})


def test_gemma3_with_another_query_scale(checkpoint_factory):
    checkpoint = opened(checkpoint_factory, "gemma3-text", {"query_pre_attn_scalar": 100})
    with pytest.raises(TargetError, match="query_pre_attn_scalar is 100"):
        target.plan(checkpoint, "m", {})


def test_a_weight_without_a_name_in_gguf(checkpoint_factory):
    checkpoint = opened(checkpoint_factory)
    weights = dict(checkpoint.weights)
    weights["layers.0.self_attn.sink"] = weights["norm.weight"]
    with pytest.raises(TargetError, match=r"layers\.0\.self_attn\.sink has no name"):
        target.plan(replace(checkpoint, weights=weights), "m", {})


def test_an_unknown_off_lattice_type(checkpoint_factory):
    with pytest.raises(UsageError, match="q8_0, bf16"):
        target.plan(opened(checkpoint_factory), "m", {"off_lattice": "q5_k"})
