"""A mobius configuration made from this project's ``Architecture``.

mobius reads transformers' configuration objects, which differ between the Hub's layout and the one that
transformers 5.23 saves. Built from ``Architecture``, which reads both, neither can break it. What mobius's
configuration cannot tell (heads that differ per layer, RoPE factors) is not taken from it: the modules of
``targets.onnx.attention`` and ``targets.onnx.modules`` are given it directly.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from mobius import ArchitectureConfig, Gemma4Config

from converter.checkpoint.architecture import FULL, Architecture


def mobius_configuration(architecture: Architecture, dtype: str) -> ArchitectureConfig:
    """The configuration that mobius's Gemma classes are built with; ``dtype`` is ``FLOAT`` or ``FLOAT16``.

    No table of rotations is asked for (``max_position_embeddings`` 1): they are computed in the graph.
    """
    values = _common(architecture) | {"dtype": ir.DataType[dtype]}
    if architecture.family == "gemma3":
        return ArchitectureConfig(rope_local_base_freq=10_000.0, attn_qk_norm=True, **values)
    per_layer, experts = architecture.per_layer_input, architecture.experts
    if experts is not None:
        values |= {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "moe_intermediate_size": experts.feed_forward,
        }
    return Gemma4Config(
        hidden_size_per_layer_input=per_layer.size if per_layer else 0,
        vocab_size_per_layer_input=per_layer.vocabulary if per_layer else 0,
        num_kv_shared_layers=sum(layer.kv_source is not None for layer in architecture.layers),
        enable_moe_block=experts is not None,
        **values,
    )


def _common(architecture: Architecture) -> dict[str, Any]:
    first = architecture.layers[0]
    return {
        "vocab_size": architecture.vocabulary,
        "hidden_size": architecture.hidden,
        "intermediate_size": first.feed_forward,
        "num_hidden_layers": len(architecture.layers),
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "pad_token_id": architecture.pad or 0,
        "tie_word_embeddings": architecture.tied_head,
        "max_position_embeddings": 1,
        "layer_types": [
            "full_attention" if layer.attention == FULL else "sliding_attention"
            for layer in architecture.layers
        ],
        "sliding_window": architecture.sliding_window,
        "rms_norm_eps": architecture.norm_eps,
        "rope_type": "default",
    }
