"""What llama.cpp cannot hold, said before a byte is written.

llama.cpp checks much of a model by assertions, which end the process. Each rule here names the loader's
own condition (llama.cpp as vendored by llama-cpp-python 0.3.36: ``src/llama-model.cpp``,
``src/llama-kv-cache.cpp``, ``src/llama-vocab.cpp``). What holds for one family stands in its own module.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from converter.checkpoint.architecture import FULL, SLIDING, Architecture
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.errors import TargetError
from targets.gguf.family import check_computed, gguf_family
from targets.tokenization import refuse_steps

#: ``LLAMA_MAX_LAYERS``.
MOST_LAYERS: Final = 512


def check(checkpoint: Checkpoint) -> None:
    """Raise ``TargetError`` for a model on which llama.cpp would fail or compute something else."""
    architecture = checkpoint.architecture
    check_computed(architecture)
    _check_layers(architecture)
    gguf_family(architecture).check(architecture)
    _check_tokenizer(checkpoint)


def first_build(architecture: Architecture, tokenizer: Tokenizer) -> str:
    """The first release of llama.cpp that runs the model rightly, such as ``b8665``."""
    family = gguf_family(architecture)
    return f"b{max(family.first_build, family.tokenizer_model(tokenizer).first_build)}"


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


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    architecture, tokenizer = checkpoint.architecture, checkpoint.tokenizer
    if len(tokenizer.tokens) != architecture.vocabulary:
        raise TargetError(
            f"gguf: the tokenizer has {len(tokenizer.tokens)} tokens and the embedding "
            f"{architecture.vocabulary} rows; llama.cpp wants them equal"
        )
    if len(set(tokenizer.tokens)) != len(tokenizer.tokens):
        text, times = Counter(tokenizer.tokens).most_common(1)[0]
        raise TargetError(f"gguf: {times} tokens have the text {text!r}; llama.cpp aborts on that")
    model = gguf_family(architecture).tokenizer_model(tokenizer)
    if not tokenizer.merges and model.scores is None:
        raise TargetError("gguf: the tokenizer has no merges; llama.cpp does not load such a vocabulary")
    refuse_steps("gguf", "which llama.cpp does not follow", checkpoint, model.lacking(tokenizer))
    model.check(tokenizer)
    for left, right in tokenizer.merges:
        if " " in left or " " in right:
            raise TargetError(f"gguf: the merge {(left, right)!r} contains a space, which GGUF cannot write")
