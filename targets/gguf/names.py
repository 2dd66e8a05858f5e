"""GGUF names of a model's text tensors, from gguf-py's map of transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import gguf

from converter.checkpoint.architecture import Architecture
from converter.errors import TargetError
from targets.gguf.family import gguf_family

#: The tensor that divides the full-attention layers' RoPE frequencies.
ROPE_FREQS: Final = "rope_freqs.weight"
#: The table of embeddings for every layer, which has columns for each, and the matrix of as many rows that
#: is added to what is looked up there.
PER_LAYER_EMBEDDING: Final = "per_layer_token_embd.weight"
PER_LAYER_PROJECTION: Final = "per_layer_model_proj.weight"


def tensor_names(architecture: Architecture, weights: Iterable[str]) -> dict[str, str]:
    """GGUF name of every canonical weight name in ``weights``, in the same order.

    Raises ``TargetError`` for a weight that has no place in the GGUF architecture.
    """
    family = gguf_family(architecture)
    table = gguf.get_tensor_name_map(family.architecture, len(architecture.layers))
    names = {}
    for weight in weights:
        found = _own_name(weight, family.names) or _mapped(table, weight)
        if found is None:
            raise TargetError(f"gguf: {weight} has no name in GGUF's {architecture.family} architecture")
        names[weight] = found
    return names


def _own_name(weight: str, own: Mapping[str, str]) -> str | None:
    parts = weight.split(".", 2)
    if len(parts) == 3 and parts[0] == "layers" and parts[2] in own:
        return f"blk.{parts[1]}.{own[parts[2]]}"
    return None


def _mapped(table: gguf.TensorNameMap, weight: str) -> str | None:
    stem = weight.removesuffix(".weight")
    found: str | None = table.get_name(stem if stem == "lm_head" else f"model.{stem}")
    # a parameter that transformers stores without a module of its own (experts, layer_scalar) is a weight too
    return None if found is None else f"{found}.weight"
