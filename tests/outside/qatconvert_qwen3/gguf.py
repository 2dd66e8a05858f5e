"""Qwen3 in llama.cpp (``src/models/qwen3.cpp``)."""

from __future__ import annotations

import math
from typing import Final

import gguf

from converter.checkpoint.architecture import FULL, SILU, Architecture
from converter.errors import TargetError
from qatconvert_qwen3.tokenizer import tokenizer_model
from targets.gguf.family import GgufFamily


def _check(architecture: Architecture) -> None:
    first, *rest = architecture.layers
    for name in ("heads", "kv_heads", "head_dim", "feed_forward"):
        if any(getattr(layer, name) != getattr(first, name) for layer in rest):
            raise TargetError(f"gguf: llama.cpp's Qwen3 has one {name} for all layers, not several")
    plain = (first.rotary_fraction, first.rope_scaling_factor) == (1, 1)
    if not plain or any(layer.attention != FULL for layer in architecture.layers):
        raise TargetError("gguf: llama.cpp's Qwen3 has full attention and plain RoPE in every layer")
    if not math.isclose(architecture.attention_scale, first.head_dim**-0.5, rel_tol=1e-6):
        raise TargetError(f"gguf: attention is scaled by {architecture.attention_scale}, which Qwen3 is not")


def _add_hyperparameters(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    layer = architecture.layers[0]
    header.add_key_length(layer.head_dim)
    header.add_value_length(layer.head_dim)
    header.add_rope_freq_base(layer.rope_theta)


#: Came with build 5092 (ggml-org/llama.cpp, pull request 12828).
QWEN3: Final = GgufFamily(
    title="Qwen3",
    architecture=gguf.MODEL_ARCH.QWEN3,
    first_build=5092,
    computes={
        "activation": SILU,
        "embedding_scale": 1.0,
        "experts": None,
        "final_softcap": None,
        "per_layer_input": None,
        "post_norms": False,
        "query_key_norms": True,
        "values_normed": False,
    },
    check=_check,
    add_hyperparameters=_add_hyperparameters,
    tokenizer_model=tokenizer_model,
)
