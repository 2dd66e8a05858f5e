"""Gemma 3 and 4 in llama.cpp (as vendored by llama-cpp-python 0.3.36: ``src/models/gemma4.cpp``,
``src/models/gemma3.cpp``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import FULL, GELU_TANH, SLIDING, Architecture, Layer
from converter.errors import TargetError
from targets.gguf.family import GgufFamily
from targets.gguf.gemma_tokenizer import BY_MERGES, by_merges_or_scores
from targets.gguf.hyperparameters import first_layer

#: ``LLAMA_MAX_EXPERTS``.
MOST_EXPERTS: Final = 1024
#: Gemma 3's loader tells 27B from the rest by its 62 layers, and scales its queries by another rule.
LAYERS_OF_27B: Final = 62
#: Divisor of the frequency of a pair that does not rotate, the one in llama.cpp's own files.
UNROTATED: Final = 1e30
_COMPUTED: Final[Mapping[str, object]] = {
    "activation": GELU_TANH,
    "query_key_norms": True,
    "post_norms": True,
}


def _check_gemma4(architecture: Architecture) -> None:
    _check_embedding(architecture)
    layers = architecture.layers
    if not any(layer.attention == SLIDING for layer in layers):
        raise TargetError("gguf: no layer has sliding attention; llama.cpp aborts on such a Gemma 4")
    if architecture.attention_scale != 1:
        raise TargetError(
            f"gguf: attention is scaled by {architecture.attention_scale}; llama.cpp's Gemma 4 has 1"
        )
    _check_shared_kv(layers)
    if architecture.experts and architecture.experts.count > MOST_EXPERTS:
        raise TargetError(
            f"gguf: {architecture.experts.count} experts; llama.cpp holds at most {MOST_EXPERTS}"
        )
    table = architecture.per_layer_input
    if table and table.vocabulary != architecture.vocabulary:
        raise TargetError(
            f"gguf: per-layer embeddings have {table.vocabulary} rows and the vocabulary "
            f"{architecture.vocabulary}; llama.cpp wants them equal"
        )


def _check_shared_kv(layers: tuple[Layer, ...]) -> None:
    """llama.cpp takes the KV of a sharing layer from the last (full) or second to last (sliding) layer
    that has its own, by position, whatever kind of layer stands there."""
    own = next((layer.index for layer in layers if layer.kv_source is not None), len(layers))
    if own < 2:
        raise TargetError(f"gguf: {own} layer with its own KV; llama.cpp aborts below 2")
    for layer in layers[own:]:
        expected = own - (2 if layer.attention == SLIDING else 1)
        if layer.kv_source != expected:
            raise TargetError(
                f"gguf: layer {layer.index} ({layer.attention}) shares the KV of layer {layer.kv_source}; "
                f"llama.cpp would take layer {expected}'s, so the last two layers with their own KV must be "
                "sliding and full, in this order"
            )


def _check_gemma3(architecture: Architecture) -> None:
    _check_embedding(architecture)
    layer = architecture.layers[0]
    for name in ("heads", "kv_heads", "head_dim", "feed_forward"):
        if len({getattr(one, name) for one in architecture.layers}) > 1:
            raise TargetError(f"gguf: llama.cpp's Gemma 3 has one {name} for all layers, not several")
    size = layer.head_dim
    if len(architecture.layers) == LAYERS_OF_27B:
        size = architecture.hidden // layer.heads
    if not math.isclose(architecture.attention_scale, size**-0.5, rel_tol=1e-6):
        raise TargetError(
            f"gguf: query_pre_attn_scalar is {architecture.query_pre_attn_scalar}; "
            f"llama.cpp's Gemma 3 of this size has {size}"
        )


def _check_embedding(architecture: Architecture) -> None:
    if not math.isclose(architecture.embedding_scale, architecture.hidden**0.5, rel_tol=1e-6):
        raise TargetError(
            f"gguf: the embedding is scaled by {architecture.embedding_scale}; llama.cpp's Gemma has the "
            f"square root of {architecture.hidden}"
        )


def _add_softcap(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    # without the key, llama.cpp caps Gemma 4's logits at 30; 0 means no cap
    header.add_final_logit_softcapping(architecture.final_softcap or 0.0)


def _add_gemma4(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    _add_softcap(header, architecture)
    sliding, full = first_layer(architecture, SLIDING), first_layer(architecture, FULL)
    assert sliding is not None
    # llama.cpp wants the lengths of full layers even where a model has none
    wide = full or sliding
    header.add_key_length(wide.head_dim)
    header.add_value_length(wide.head_dim)
    header.add_key_length_swa(sliding.head_dim)
    header.add_value_length_swa(sliding.head_dim)
    header.add_rope_dimension_count(wide.head_dim)
    header.add_rope_dimension_count_swa(sliding.head_dim)
    header.add_rope_freq_base(wide.rope_theta)
    header.add_rope_freq_base_swa(sliding.rope_theta)
    header.add_sliding_window(architecture.sliding_window)
    header.add_sliding_window_pattern([layer.attention == SLIDING for layer in architecture.layers])
    header.add_shared_kv_layers(sum(layer.kv_source is not None for layer in architecture.layers))
    per_layer_input = architecture.per_layer_input
    header.add_embedding_length_per_layer_input(per_layer_input.size if per_layer_input else 0)
    if architecture.experts:
        header.add_expert_count(architecture.experts.count)
        header.add_expert_used_count(architecture.experts.active)
        header.add_expert_feed_forward_length(architecture.experts.feed_forward)


def _add_gemma3(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    _add_softcap(header, architecture)
    sliding, full = first_layer(architecture, SLIDING), first_layer(architecture, FULL)
    layer = architecture.layers[0]
    header.add_key_length(layer.head_dim)
    header.add_value_length(layer.head_dim)
    wide = full or layer
    header.add_rope_freq_base(wide.rope_theta)
    if wide.rope_scaling_factor != 1:
        header.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        header.add_rope_scaling_factor(wide.rope_scaling_factor)
    if sliding is not None:
        header.add_rope_freq_base_swa(sliding.rope_theta)
        header.add_sliding_window(architecture.sliding_window)
        header.add_sliding_window_pattern([one.attention == SLIDING for one in architecture.layers])


def _gemma4_factors(architecture: Architecture) -> NDArray[np.float32] | None:
    """Proportional RoPE rotates only the first pairs of a head, with frequencies spread over the whole head.
    The first pairs get the scaling factor (1), the others a divisor so large that they stand still."""
    full = first_layer(architecture, FULL)
    if full is None:
        return None
    factors = np.full(full.head_dim // 2, UNROTATED, np.float32)
    factors[: full.rotated_pairs] = full.rope_scaling_factor
    return factors


#: Came with build 4875 (ggml-org/llama.cpp, pull request 12343).
GEMMA3: Final = GgufFamily(
    title="Gemma",
    architecture=gguf.MODEL_ARCH.GEMMA3,
    first_build=4875,
    computes={**_COMPUTED, "values_normed": False},
    check=_check_gemma3,
    add_hyperparameters=_add_gemma3,
    tokenizer_model=by_merges_or_scores,
    own_rules=frozenset({LAYERS_OF_27B}),
)
#: Came with build 8637 (pull request 21309). Scales that multiply a matrix multiplication's output keep the
#: matrix's name, with a suffix (``llama_model_gemma4::load_arch_tensors``).
GEMMA4: Final = GgufFamily(
    title="Gemma",
    architecture=gguf.MODEL_ARCH.GEMMA4,
    first_build=8637,
    computes={**_COMPUTED, "values_normed": True},
    check=_check_gemma4,
    add_hyperparameters=_add_gemma4,
    tokenizer_model=lambda tokenizer: BY_MERGES,
    rope_factors=_gemma4_factors,
    names={"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"},
)
