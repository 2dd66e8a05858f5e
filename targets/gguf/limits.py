"""What llama.cpp cannot hold, said before a byte is written.

llama.cpp checks much of a model by assertions, which end the process. Each rule here names the loader's
own condition (llama.cpp as vendored by llama-cpp-python 0.3.36: ``src/models/gemma4.cpp``,
``src/models/gemma3.cpp``, ``src/llama-model.cpp``, ``src/llama-kv-cache.cpp``, ``src/llama-vocab.cpp``).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from converter.checkpoint.architecture import FULL, SLIDING, Architecture, Layer
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import LENGTH, SPACE_PREFIX
from converter.errors import TargetError
from targets.gguf.vocabulary import tokenizer_model
from targets.tokenization import refuse_steps

#: ``LLAMA_MAX_LAYERS`` and ``LLAMA_MAX_EXPERTS``.
MOST_LAYERS: Final = 512
MOST_EXPERTS: Final = 1024
#: Gemma 3's loader tells 27B from the rest by its 62 layers, and scales its queries by another rule.
LAYERS_OF_27B: Final = 62
#: The first llama.cpp for each ``tokenizer.ggml.model``. Gemma 3 came with build 4875 (ggml-org/llama.cpp,
#: pull request 12343). Gemma 4 came with 8637 (21309), its tokenizer by merges a day later (21343); 8665 is
#: the first release known to hold both.
_FIRST_BUILDS: Final = {"llama": "b4875", "gemma4": "b8665"}


def check(checkpoint: Checkpoint) -> None:
    """Raise ``TargetError`` for a model on which llama.cpp would fail or compute something else."""
    architecture = checkpoint.architecture
    _check_layers(architecture)
    if architecture.family == "gemma4":
        _check_gemma4(architecture)
    else:
        _check_gemma3(architecture)
    _check_tokenizer(architecture, checkpoint.tokenizer)


def first_build(architecture: Architecture, tokenizer: Tokenizer) -> str:
    """The first release of llama.cpp that runs the model rightly, such as ``b8665``."""
    return _FIRST_BUILDS[tokenizer_model(architecture, tokenizer)]


def _check_layers(architecture: Architecture) -> None:
    count = len(architecture.layers)
    if count > MOST_LAYERS:
        raise TargetError(f"gguf: {count} layers; llama.cpp holds at most {MOST_LAYERS}")
    for layer in architecture.layers:
        if layer.head_dim % 2:
            raise TargetError(f"gguf: layer {layer.index} has an odd head size, {layer.head_dim}")
    for attention in (SLIDING, FULL):
        alike = [layer for layer in architecture.layers if layer.attention == attention]
        for name in ("head_dim", "rope_theta", "rotary_fraction", "rope_scaling_factor"):
            if len({getattr(layer, name) for layer in alike}) > 1:
                raise TargetError(f"gguf: llama.cpp has one {name} for all {attention} layers, not several")
    for layer in architecture.layers:
        if layer.attention == SLIDING and (layer.rotary_fraction, layer.rope_scaling_factor) != (1, 1):
            raise TargetError(
                f"gguf: layer {layer.index} scales or cuts the RoPE of sliding attention; "
                "llama.cpp does so for full attention only"
            )


def _check_gemma4(architecture: Architecture) -> None:
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


def _check_tokenizer(architecture: Architecture, tokenizer: Tokenizer) -> None:
    if len(tokenizer.tokens) != architecture.vocabulary:
        raise TargetError(
            f"gguf: the tokenizer has {len(tokenizer.tokens)} tokens and the embedding "
            f"{architecture.vocabulary} rows; llama.cpp wants them equal"
        )
    if len(set(tokenizer.tokens)) != len(tokenizer.tokens):
        text, times = Counter(tokenizer.tokens).most_common(1)[0]
        raise TargetError(f"gguf: {times} tokens have the text {text!r}; llama.cpp aborts on that")
    if tokenizer.bos is None:
        raise TargetError("gguf: the tokenizer has no token that begins a sequence; llama.cpp aborts without")
    if not tokenizer.merges and tokenizer_model(architecture, tokenizer) == "gemma4":
        raise TargetError("gguf: the tokenizer has no merges; llama.cpp does not load such a vocabulary")
    if not tokenizer.byte_fallback:
        raise TargetError("gguf: the tokenizer has no byte fallback; llama.cpp's tokenizers of Gemma need it")
    by_scores = tokenizer_model(architecture, tokenizer) == "llama"
    if tokenizer.space_prefix and not by_scores:
        raise TargetError(
            "gguf: the tokenizer puts a space before the text; llama.cpp's tokenizer of Gemma 4 cannot"
        )
    # its tokenizer by scores knows the prefix; a file's limits to length concern training alone
    known = {LENGTH, SPACE_PREFIX} if by_scores else {LENGTH}
    refuse_steps("gguf", "which llama.cpp does not follow", tokenizer, known)
    for left, right in tokenizer.merges:
        if " " in left or " " in right:
            raise TargetError(f"gguf: the merge {(left, right)!r} contains a space, which GGUF cannot write")
