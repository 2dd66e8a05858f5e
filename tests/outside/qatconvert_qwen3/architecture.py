"""Qwen3's dense models, with the keys, defaults and shapes of transformers 5.23 (``Qwen3Config``,
``Qwen3Model``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from converter.checkpoint.architecture import FULL, SILU, Architecture, Family, Layer, keys
from converter.system.untrusted import Settings

#: Qwen's recommendation for answers without thinking.
_SAMPLING: Final = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}


def read(config: Settings, model_type: str) -> Architecture:
    """The architecture of a Qwen3 ``config.json``; raises ``CheckpointError``."""
    config.require("hidden_act", ("silu",), "silu")
    config.require("attention_bias", (False,), False)
    config.require("use_sliding_window", (False,), False)
    vocabulary = config.integer("vocab_size", 151_936, high=keys.LARGEST_VOCABULARY)
    hidden = config.integer("hidden_size", 4096, high=keys.WIDEST)
    layers = _layers(config)
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        family="qwen3",
        model_type=model_type,
        text_type=model_type,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        context=config.integer("max_position_embeddings", 32_768),
        sliding_window=0,
        activation=SILU,
        embedding_scale=1.0,
        attention_scale=layers[0].head_dim ** -0.5,
        norm_offset=0.0,
        tied_head=tied,
        bos=keys.token(config, "bos_token_id", None, vocabulary),
        eos=keys.end_tokens(config, config, None, vocabulary),
        pad=keys.token(config, "pad_token_id", None, vocabulary),
        end_of_turn=("<|im_end|>",),
        sampling=_SAMPLING,
        tensors=_tensors(vocabulary, hidden, layers, tied),
        prefixes=("model.", ""),
    )


def _layers(config: Settings) -> tuple[Layer, ...]:
    heads = config.integer("num_attention_heads", 32, high=keys.WIDEST)
    layer = Layer(
        index=0,
        attention=FULL,
        heads=heads,
        kv_heads=keys.heads(config, heads, 32),
        head_dim=config.integer("head_dim", 128, high=keys.WIDEST),
        feed_forward=config.integer("intermediate_size", 22_016, high=keys.WIDEST),
        rope_theta=_rope_theta(config),
    )
    count = config.integer("num_hidden_layers", 32, high=keys.MOST_LAYERS)
    return tuple(replace(layer, index=index) for index in range(count))


def _rope_theta(config: Settings) -> float:
    """Of ``rope_parameters``, or of the older ``rope_theta`` without ``rope_scaling``."""
    config.require("rope_scaling", (None,), None)
    rope = config.section("rope_parameters") or Settings({}, config.where)
    rope.require("rope_type", ("default",), "default")
    return rope.number("rope_theta", config.number("rope_theta", 10_000.0))


def _tensors(vocabulary: int, hidden: int, layers: tuple[Layer, ...], tied: bool) -> keys.Shapes:
    shapes: keys.Shapes = {"embed_tokens.weight": (vocabulary, hidden)}
    for layer in layers:
        prefix = f"layers.{layer.index}."
        queries, key_rows = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}self_attn.q_norm.weight": (layer.head_dim,),
            f"{prefix}self_attn.k_proj.weight": (key_rows, hidden),
            f"{prefix}self_attn.k_norm.weight": (layer.head_dim,),
            f"{prefix}self_attn.v_proj.weight": (key_rows, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, queries),
        }
        shapes |= keys.mlp(prefix, hidden, layer.feed_forward)
        shapes |= keys.norms(prefix, hidden, ("input_layernorm", "post_attention_layernorm"))
    shapes["norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


FAMILY: Final = Family(("qwen3",), read)
