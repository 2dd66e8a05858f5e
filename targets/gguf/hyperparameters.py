"""The architecture as GGUF metadata, in the keys that llama.cpp's loaders read."""

from __future__ import annotations

from collections.abc import Sequence

import gguf

from converter.checkpoint.architecture import Architecture, Layer
from targets.gguf.family import gguf_family


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
    gguf_family(architecture).add_hyperparameters(header, architecture)


def first_layer(architecture: Architecture, attention: str) -> Layer | None:
    """The first layer of a kind of attention, ``None`` if there is none."""
    return next((layer for layer in architecture.layers if layer.attention == attention), None)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)
