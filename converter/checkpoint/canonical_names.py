"""Canonical names of tensors that more than one module knows, whatever the family is."""

from __future__ import annotations

from typing import Final

EMBEDDING: Final = "embed_tokens.weight"
#: The table of per-layer embeddings.
PER_LAYER_EMBEDDING: Final = "embed_tokens_per_layer.weight"
#: The output head. A model that ties it to the embedding has no such tensor.
HEAD: Final = "lm_head.weight"
#: The norm before the output head.
FINAL_NORM: Final = "norm.weight"
