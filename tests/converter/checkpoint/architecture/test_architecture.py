"""Architectures agree with transformers' own models, in both layouts of ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

from converter.checkpoint.architecture import FULL, SLIDING, Architecture, read_architecture
from converter.errors import CheckpointError

BASE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
}
GEMMA4 = {**BASE, "global_head_dim": 64, "hidden_size_per_layer_input": 0}
PER_LAYER_INPUT = {
    **GEMMA4,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 80,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "final_logit_softcapping": 30.0,
}
MIXTURE = {
    **GEMMA4,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
KEY_IS_VALUE = {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
GLOBAL_HEADS_WITHOUT_KEY_IS_VALUE = {**GEMMA4, "num_global_key_value_heads": 1}
LINEAR_ROPE = {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 500_000.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "e2b": {"model_type": "gemma4", "text_config": PER_LAYER_INPUT},
    "12b": {"model_type": "gemma4_unified", "text_config": BASE},
    "12b-key-is-value": {
        "model_type": "gemma4_unified",
        "text_config": {**BASE, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    },
    "26b-a4b": {"model_type": "gemma4", "text_config": MIXTURE},
    "31b": {"model_type": "gemma4", "text_config": KEY_IS_VALUE},
    "global-heads-without-key-is-value": {
        "model_type": "gemma4",
        "text_config": GLOBAL_HEADS_WITHOUT_KEY_IS_VALUE,
    },
    "untied": {"model_type": "gemma4", "text_config": GEMMA4, "tie_word_embeddings": False},
    "text": {"model_type": "gemma4_text", **PER_LAYER_INPUT},
    "text-last-layer-forced-full": {
        "model_type": "gemma4_text",
        **GEMMA4,
        "layer_types": ["full_attention"] + ["sliding_attention"] * 5,
    },
    "unified-text": {"model_type": "gemma4_unified_text", **BASE, "global_head_dim": 64},
    "gemma3": {"model_type": "gemma3", "text_config": LINEAR_ROPE},
    "gemma3-text": {"model_type": "gemma3_text", **BASE, "sliding_window_pattern": 3},
    "gemma3-untied": {"model_type": "gemma3_text", **BASE, "tie_word_embeddings": False},
}
#: Only counts are given, so that every other key takes its default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4": {"model_type": "gemma4", "text_config": {}},
    "gemma4-text": {"model_type": "gemma4_text"},
    "gemma4-unified": {"model_type": "gemma4_unified", "text_config": {}},
    "gemma3": {"model_type": "gemma3", "text_config": {}},
    "gemma3-text": {"model_type": "gemma3_text"},
}
EVERY = {**VARIANTS, **{f"default-{name}": config for name, config in DEFAULTS.items()}}


def transformers_config(config: Mapping[str, Any]) -> Any:
    rest = json.loads(json.dumps({key: value for key, value in config.items() if key != "model_type"}))
    return transformers.AutoConfig.for_model(config["model_type"], **rest)


def transformers_model(config: Any) -> Any:
    """transformers' own model without numbers."""
    multimodal = hasattr(config, "text_config")
    loader = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config)
    model.tie_weights()
    return model


def transformers_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Text tensors of transformers' own model, by canonical name; a tied head is left out."""
    multimodal = hasattr(config, "text_config")
    model = transformers_model(config)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    start = "model.language_model." if multimodal else "model."
    shapes = {
        name.removeprefix(start): tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.startswith(start) or (name == "lm_head.weight" and not tied)
    }
    assert shapes
    return shapes


@pytest.mark.parametrize("name", EVERY)
def test_tensors_are_those_of_transformers(name: str) -> None:
    expected = transformers_shapes(transformers_config(EVERY[name]))
    assert dict(read_architecture(EVERY[name]).tensors) == expected


def weights_of(model: Any, kind: str) -> set[str]:
    """Canonical names of the weights of a text model's modules whose class has ``kind`` in its name."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if kind in type(module).__name__ and getattr(module, "weight", None) is not None
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_norms_are_the_weights_of_transformers_norms(name: str) -> None:
    config = transformers_config(VARIANTS[name]).get_text_config()
    architecture = read_architecture(VARIANTS[name])
    text = transformers_model(config).get_decoder()
    assert set(architecture.norms) == weights_of(text, "RMSNorm")
    assert {architecture.offset_of(norm) for norm in architecture.norms} == {architecture.norm_offset}
    others = architecture.tensors.keys() - set(architecture.norms)
    assert {architecture.offset_of(other) for other in others} == {0.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_routers_are_the_matrices_of_transformers_routers(name: str) -> None:
    config = transformers_config(VARIANTS[name]).get_text_config()
    routers = {
        f"{name}.{inner}.weight"
        for name, module in transformers_model(config).get_decoder().named_modules()
        if "Router" in type(module).__name__
        for inner, child in module.named_modules()
        if isinstance(child, torch.nn.Linear)
    }
    assert set(read_architecture(VARIANTS[name]).routers) == routers
    assert bool(routers) == (name == "26b-a4b")


@pytest.mark.parametrize("name", EVERY)
def test_both_layouts_give_the_same_architecture(name: str) -> None:
    saved = json.loads(transformers_config(EVERY[name]).to_json_string())
    if name in ("gemma3", "gemma3-text"):
        assert "rope_parameters" in saved.get("text_config", saved)
    if saved["model_type"].startswith("gemma4"):
        assert "per_layer_config" in saved.get("text_config", saved)
    assert read_architecture(saved) == read_architecture(EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_scalars_are_those_of_transformers(name: str) -> None:
    architecture = read_architecture(EVERY[name])
    config = transformers_config(EVERY[name]).get_text_config()
    assert architecture.context == config.max_position_embeddings
    assert architecture.sliding_window == config.sliding_window
    assert architecture.norm_eps == config.rms_norm_eps
    assert architecture.final_softcap == config.final_logit_softcapping
    assert (architecture.bos, architecture.pad) == (config.bos_token_id, config.pad_token_id)
    types = {SLIDING: "sliding_attention", FULL: "full_attention"}
    assert [types[layer.attention] for layer in architecture.layers] == config.layer_types


def inverse_frequencies(architecture: Architecture, attention: str) -> torch.Tensor:
    layer = next(layer for layer in architecture.layers if layer.attention == attention)
    pairs = torch.arange(layer.head_dim // 2, dtype=torch.float64)
    frequencies = layer.rope_theta ** -(2 * pairs / layer.head_dim) / layer.rope_scaling_factor
    return torch.where(pairs < layer.rotated_pairs, frequencies, 0.0).float()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("attention", [SLIDING, FULL])
def test_rotary_frequencies_are_those_of_transformers(name: str, attention: str) -> None:
    architecture = read_architecture(EVERY[name])
    text = transformers_config(EVERY[name]).get_text_config()
    rotary = Gemma3RotaryEmbedding if architecture.family == "gemma3" else Gemma4TextRotaryEmbedding
    expected = getattr(rotary(text), f"{attention}_attention_inv_freq")
    torch.testing.assert_close(inverse_frequencies(architecture, attention), expected, rtol=2e-6, atol=0)


def test_sharing_layers_use_the_last_layer_of_their_kind_with_own_keys() -> None:
    architecture = read_architecture(VARIANTS["e2b"])
    assert [layer.kv_source for layer in architecture.layers] == [None, None, None, 1, 2, 1]
    assert [layer.feed_forward for layer in architecture.layers] == [96, 96, 96, 192, 192, 192]


def test_keys_and_values_of_sharing_layers_are_unused() -> None:
    unused = read_architecture(VARIANTS["e2b"]).unused
    assert set(unused) == {
        f"layers.{index}.self_attn.{name}.weight"
        for index in (3, 4, 5)
        for name in ("k_proj", "v_proj", "k_norm", "v_norm")
    }


def test_full_layers_take_values_from_the_key_projection() -> None:
    architecture = read_architecture(VARIANTS["31b"])
    layers = architecture.layers
    assert set(architecture.unused) == {"layers.5.self_attn.v_proj.weight"}
    assert [(layer.key_is_value, layer.kv_heads, layer.head_dim) for layer in layers] == [
        *[(False, 2, 32)] * 5,
        (True, 1, 64),
    ]


def test_end_tokens_of_the_whole_model_win() -> None:
    config = {
        "model_type": "gemma4",
        "eos_token_id": [1, 50, 1],
        "text_config": {**GEMMA4, "eos_token_id": 7},
    }
    assert read_architecture(config).eos == (1, 50)
    assert read_architecture({"model_type": "gemma4", "text_config": {**GEMMA4, "eos_token_id": 7}}).eos == (
        7,
    )


def test_e2b_sizes_of_the_hub() -> None:
    text = {
        "hidden_size": 1536,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "intermediate_size": 6144,
        "use_double_wide_mlp": True,
        "num_kv_shared_layers": 20,
        "layer_types": ["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(35)],
    }
    architecture = read_architecture({"model_type": "gemma4", "text_config": text})
    assert architecture.tensors["embed_tokens_per_layer.weight"] == (262144, 8960)
    assert [layer.feed_forward for layer in architecture.layers] == [6144] * 15 + [12288] * 20
    assert {layer.kv_source for layer in architecture.layers[15:]} == {13, 14}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": None}, "head_dim is null"),
    ({"head_dim": 256.0}, "head_dim is 256.0, expected an integer"),
    ({"head_dim": True}, "head_dim is True, expected an integer"),
    ({"hidden_size": -1}, "hidden_size is -1, outside"),
    ({"hidden_size": 10**30}, "hidden_size is 1000"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, outside 1..1024"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps is 1e+300, which float32 cannot hold"),
    ({"final_logit_softcapping": 1e-300}, "final_logit_softcapping is 1e-300, which float32 cannot hold"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide 4 heads"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 6 layers"),
    ({"layer_types": ["linear_attention"] * 6}, "layer_types holds 'linear_attention'"),
    ({"layer_types": [["full_attention"]] * 6}, "layer_types holds"),
    ({"layer_types": "full_attention"}, "layer_types is 'full_attention', expected a list"),
    ({"num_kv_shared_layers": 6}, "num_kv_shared_layers is 6, outside 0..5"),
    ({"num_kv_shared_layers": 2, "layer_types": ["sliding_attention"] * 6}, "leaves no full layer"),
    ({"enable_moe_block": True}, "num_experts is missing"),
    ({"enable_moe_block": "yes"}, "enable_moe_block is 'yes', expected true or false"),
    ({"enable_moe_block": True, "num_experts": 2, "top_k_experts": 3}, "top_k_experts is 3, outside 1..2"),
    ({"attention_bias": True}, "attention_bias is True, which is not supported"),
    ({"hidden_activation": "silu"}, "hidden_activation is 'silu', which is not supported"),
    ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    ({"rope_parameters": []}, "rope_parameters is a list, expected an object"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters lacks sliding_attention"),
    (
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4},
                "full_attention": {"rope_theta": 1e6},
            }
        },
        "rope_type is 'yarn', which is not supported",
    ),
    ({"per_layer_config": {"6": {}}}, "6 is no index of the 6 layers"),
    ({"per_layer_config": {"-1": {}}}, "-1 is no index"),
    ({"per_layer_config": {"1": {"skip": ["mlp"]}}}, "skip is not supported per layer"),
    ({"per_layer_config": {"1": {"intermediate_size": 4}}}, "intermediate_size is not supported per layer"),
    ({"per_layer_config": {"1": None}}, "per_layer_config.1 is null"),
    ({"per_layer_config": {"5": {"head_dim": 64}}, "num_kv_shared_layers": 3}, "leaves no full layer"),
    ({"eos_token_id": [96]}, "eos_token_id is [96], expected ids below 96"),
    ({"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}"),
    ({"bos_token_id": 96}, "bos_token_id is 96, outside 0..95"),
    ({"model_type": "gemma3_text"}, "model_type is 'gemma3_text', which is not supported"),
]


def test_products_of_sizes_are_bounded_too() -> None:
    text = {**GEMMA4, "head_dim": 1 << 20, "global_head_dim": 1 << 20, "num_attention_heads": 8}
    with pytest.raises(
        CheckpointError, match=r"'layers\.0\.self_attn\.o_proj\.weight' rows of 8388608 values"
    ):
        read_architecture({"model_type": "gemma4", "text_config": text})


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_architecture({"model_type": "gemma4", "text_config": {**GEMMA4, **change}})
    assert message in str(caught.value)
    assert "config.json: text_config" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", None, 3, ["gemma4"]])
def test_an_unknown_model_type_lists_the_known_ones(model_type: object) -> None:
    with pytest.raises(CheckpointError, match="gemma3, gemma3_text, gemma4, gemma4_text, gemma4_unified"):
        read_architecture({"model_type": model_type})


def test_a_multimodal_config_needs_its_text_config() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: text_config is missing"):
        read_architecture({"model_type": "gemma4"})


def test_layers_that_share_keys_need_equal_heads() -> None:
    text = {**PER_LAYER_INPUT, "per_layer_config": {"1": {"head_dim": 64}, "3": {"head_dim": 128}}}
    with pytest.raises(CheckpointError, match="gives layer 3 other heads than layer 1"):
        read_architecture({"model_type": "gemma4", "text_config": text})
