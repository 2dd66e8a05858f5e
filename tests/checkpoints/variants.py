"""Small configurations with the structure of every supported model, in the spelling of the Hub's files.

The shapes keep what is particular to each model: per-layer inputs, shared keys and values and the
double-wide MLP (E2B, E4B), keys that serve as values with fewer global KV heads (12B, 26B-A4B, 31B), experts
(26B-A4B). The last two layers with keys and values of their own are sliding, then full, as llama.cpp needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from checkpoints import towers
from checkpoints.towers import Shapes

#: The published E2B, for checkpoints in its proportions.
E2B_FULL_SIZE: Mapping[str, object] = {
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 6144,
    "num_attention_heads": 8,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "sliding_window": 512,
    "vocab_size": 262144,
}

#: Keys of an E2B of which an excerpt leaves several layers out.
TEN_LAYERS: Mapping[str, object] = {
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 2,
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 5,
}


@dataclass(frozen=True)
class Variant:
    """One model's small relative.

    ``text`` is its text configuration without ``layer_types``, which has a full layer every ``period``-th;
    ``extra_vocabulary`` rows of the embedding have no token (Gemma 3's multimodal models have 64).
    ``prefix`` precedes the text tensors' canonical names. ``vision``, ``audio`` and ``towers`` are
    configurations and tensors (shape by name) of the other parts, ``ids`` their tokens in ``config.json``.
    """

    model_type: str
    period: int
    text: Mapping[str, object]
    vision: Mapping[str, object] | None = None
    audio: Mapping[str, object] | None = None
    extra_vocabulary: int = 0
    prefix: str = "model.language_model."
    towers: Shapes = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)


_GEMMA4: Mapping[str, object] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 64,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "hidden_size_per_layer_input": 0,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_attention_heads": 4,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": False,
}
_PER_LAYER_INPUT: Mapping[str, object] = {**_GEMMA4, "hidden_size_per_layer_input": 32}
_E2B: Mapping[str, object] = {
    **_PER_LAYER_INPUT,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
_E4B: Mapping[str, object] = {
    **_PER_LAYER_INPUT,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 3,
}
_GLOBAL_KEYS: Mapping[str, object] = {
    **_GEMMA4,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "num_key_value_heads": 2,
}
_NOT_UNIFIED = {
    "enable_moe_block",
    "hidden_size_per_layer_input",
    "moe_intermediate_size",
    "num_experts",
    "top_k_experts",
}
_12B: Mapping[str, object] = {
    **{key: value for key, value in _GLOBAL_KEYS.items() if key not in _NOT_UNIFIED},
    "model_type": "gemma4_unified_text",
    "use_bidirectional_attention": "vision",
}
_26B_A4B: Mapping[str, object] = {
    **_GLOBAL_KEYS,
    "enable_moe_block": True,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "top_k_experts": 2,
    "use_bidirectional_attention": "vision",
}
_31B: Mapping[str, object] = {
    **_GLOBAL_KEYS,
    "num_attention_heads": 8,
    "num_global_key_value_heads": 2,
    "num_key_value_heads": 4,
    "use_bidirectional_attention": "vision",
}
_GEMMA3: Mapping[str, object] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000.0,
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "use_cache": True,
}
_GEMMA3_TEXT: Mapping[str, object] = {**_GEMMA3, "num_key_value_heads": 1, "rope_scaling": None}
_IDS = {
    "audio_token_id": "<|audio|>",
    "boa_token_id": "<|audio>",
    "boi_token_id": "<|image>",
    "eoa_token_index": "<audio|>",
    "eoi_token_id": "<image|>",
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
}
_GEMMA3_IDS = {
    "boi_token_index": "<|image>",
    "eoi_token_index": "<image|>",
    "image_token_index": "<|image|>",
}


def _multimodal(period: int, text: Mapping[str, object], audio: bool) -> Variant:
    hidden = towers.size(text, "hidden_size")
    return Variant(
        model_type="gemma4",
        period=period,
        text=text,
        vision=towers.VISION,
        audio=towers.AUDIO if audio else None,
        towers=towers.vision(hidden) | (towers.audio(hidden) if audio else {}),
        ids=_IDS,
    )


VARIANTS: Mapping[str, Variant] = {
    "e2b": _multimodal(3, _E2B, audio=True),
    "e4b": _multimodal(3, _E4B, audio=True),
    "12b": Variant(
        model_type="gemma4_unified",
        period=3,
        text=_12B,
        vision=towers.unified_vision_config(towers.size(_12B, "hidden_size")),
        audio=towers.UNIFIED_AUDIO,
        towers=towers.unified(towers.size(_12B, "hidden_size")),
        ids=_IDS,
    ),
    "26b-a4b": _multimodal(3, _26B_A4B, audio=False),
    "31b": _multimodal(3, _31B, audio=False),
    "text": Variant(model_type="gemma4_text", period=3, text=_E2B, prefix="model."),
    "gemma3": Variant(
        model_type="gemma3",
        period=6,
        text=_GEMMA3,
        vision=towers.SIGLIP,
        extra_vocabulary=64,
        prefix="language_model.model.",
        towers=towers.siglip(towers.size(_GEMMA3, "hidden_size")),
        ids=_GEMMA3_IDS,
    ),
    "gemma3-text": Variant(model_type="gemma3_text", period=6, text=_GEMMA3_TEXT, prefix="model."),
}
