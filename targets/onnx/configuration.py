"""Values of a mobius configuration, made from this project's ``Architecture``.

mobius reads transformers' configuration objects, which differ between the Hub's layout and the one that
transformers 5.23 saves. Built from ``Architecture``, which reads both, neither can break it. What mobius's
configuration cannot tell (heads that differ per layer, RoPE factors) is not taken from it: the modules of
``targets.onnx.attention`` and ``targets.onnx.modules`` are given it directly.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from converter.checkpoint.architecture import FULL, Architecture
from converter.checkpoint.special_tokens import PAD_ID
from targets.onnx.family import ACTIVATIONS


def mobius_values(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """Values of the configuration that mobius's classes are built with, whatever the family; ``dtype`` is
    ``FLOAT`` or ``FLOAT16``.

    No table of rotations is asked for (``max_position_embeddings`` 1): they are computed in the graph.
    """
    first = architecture.layers[0]
    return {
        "vocab_size": architecture.vocabulary,
        "hidden_size": architecture.hidden,
        "intermediate_size": first.feed_forward,
        "num_hidden_layers": len(architecture.layers),
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": ACTIVATIONS[architecture.activation],
        PAD_ID: architecture.pad or 0,
        "tie_word_embeddings": architecture.tied_head,
        "max_position_embeddings": 1,
        "layer_types": [
            "full_attention" if layer.attention == FULL else "sliding_attention"
            for layer in architecture.layers
        ],
        "sliding_window": architecture.sliding_window,
        "rms_norm_eps": architecture.norm_eps,
        "rope_type": "default",
        "dtype": ir.DataType[dtype],
    }
