"""The architecture as GGUF metadata, in the keys that llama.cpp's Gemma loaders read."""

from __future__ import annotations

from collections.abc import Sequence

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import FULL, SLIDING, Architecture, Layer

#: Divisor of the frequency of a pair that does not rotate, the one in llama.cpp's own files.
UNROTATED = 1e30


def add_hyperparameters(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    """Add the keys of ``architecture``; the model must have passed ``targets.gguf.limits``."""
    layers = architecture.layers
    header.add_context_length(architecture.context)
    header.add_embedding_length(architecture.hidden)
    header.add_block_count(len(layers))
    header.add_feed_forward_length(_one_or_all([layer.feed_forward for layer in layers]))
    header.add_head_count(_one_or_all([layer.heads for layer in layers]))
    header.add_head_count_kv(_one_or_all([layer.kv_heads for layer in layers]))
    header.add_layer_norm_rms_eps(architecture.norm_eps)
    # without the key, llama.cpp caps Gemma 4's logits at 30; 0 means no cap
    header.add_final_logit_softcapping(architecture.final_softcap or 0.0)
    if architecture.family == "gemma4":
        _add_gemma4(header, architecture)
    else:
        _add_gemma3(header, architecture)


def _add_gemma4(header: gguf.GGUFWriter, architecture: Architecture) -> None:
    sliding, full = _first(architecture, SLIDING), _first(architecture, FULL)
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
    sliding, full = _first(architecture, SLIDING), _first(architecture, FULL)
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


def rope_factors(architecture: Architecture) -> NDArray[np.float32] | None:
    """Divisors of the full-attention layers' RoPE frequencies, float32 ``[head_dim / 2]``, or ``None``
    for a model that has no such tensor.

    Gemma 4's proportional RoPE rotates only the first pairs of a head, with frequencies spread over the
    whole head: those get the scaling factor (1), the others a divisor so large that they stand still.
    """
    full = _first(architecture, FULL)
    if architecture.family != "gemma4" or full is None:
        return None
    factors = np.full(full.head_dim // 2, UNROTATED, np.float32)
    factors[: full.rotated_pairs] = full.rope_scaling_factor
    return factors


def _first(architecture: Architecture, attention: str) -> Layer | None:
    return next((layer for layer in architecture.layers if layer.attention == attention), None)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)
