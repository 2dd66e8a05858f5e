"""An excerpt (``converter.checkpoint.excerpt``) of a GGUF model: the tensors of some of its layers, and its
metadata.

Tensors of the kept layers get their new numbers. Of the keys, those with a value for every layer keep the
values of these layers. The numbers of all layers and of sharing ones become smaller by as many as are left
out. All other keys are the artifact's, byte for byte: what is wrong there is as wrong in the excerpt.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import gguf

from converter.checkpoint.excerpt import Excerpt
from converter.errors import CheckpointError
from targets.gguf.family import family_named
from targets.gguf.metadata import decoded, item_size
from targets.gguf.names import PER_LAYER_EMBEDDING, PER_LAYER_PROJECTION
from targets.gguf.reading import Source

_BLOCK: Final = re.compile(r"blk\.([0-9]{1,6})\.")
#: Keys behind the architecture's name: the number of layers, that of those that share keys and values, and
#: which layers have a sliding window.
_LAYERS: Final = ".block_count"
_SHARING: Final = ".attention.shared_kv_layers"
_PATTERN: Final = ".attention.sliding_window_pattern"
#: GGUF's numbers of the types of integers.
_INTEGERS: Final = frozenset((0, 1, 2, 3, 4, 5, 10, 11))

Entries = tuple[tuple[str, bytes], ...]


def excerpted_tensors(artifact: Path, sources: Sequence[Source], excerpt: Excerpt) -> list[Source]:
    """Those of an artifact's tensors that the excerpt has, as it has them, in their order.

    Raises ``CheckpointError`` for a table for every layer that cannot be cut between layers."""
    found = (_cut(source, excerpt, artifact) for source in sources)
    return [source for source in found if source is not None]


def excerpted_entries(artifact: Path, entries: Entries, architecture: str, excerpt: Excerpt) -> Entries:
    """An artifact's keys and values as the excerpt has them; ``architecture`` is what keys begin with.

    Raises ``CheckpointError`` for an artifact of which llama.cpp would compute the excerpt by other rules
    than the whole."""
    _check(artifact, architecture, dict(entries), excerpt)
    return tuple((key, _excerpted(key, value, architecture, excerpt)) for key, value in entries)


def _cut(source: Source, excerpt: Excerpt, artifact: Path) -> Source | None:
    """What an excerpt has of a tensor, ``None`` if it is of a layer that is left out."""
    tensor = source.tensor
    if match := _BLOCK.match(tensor.name):
        if int(match[1]) not in excerpt.layers:
            return None
        name = f"blk.{excerpt.layers.index(int(match[1]))}.{tensor.name[match.end() :]}"
        return replace(source, tensor=replace(tensor, name=name))
    if tensor.name not in (PER_LAYER_EMBEDDING, PER_LAYER_PROJECTION):
        return source
    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    by_columns = tensor.name == PER_LAYER_EMBEDDING
    block = gguf.GGML_QUANT_SIZES[tensor.type][0]
    each, rest = divmod(columns if by_columns else rows, excerpt.of)
    if rest or (by_columns and each % block):
        raise CheckpointError(
            f"{artifact.name}: tensor {tensor.name} of type {tensor.type.name} cannot be cut between layers"
        )
    kept = each * len(excerpt.layers)
    shape = (rows, kept) if by_columns else (kept, columns)
    part = replace(tensor, shape=shape, bytes=tensor.bytes // excerpt.of * len(excerpt.layers))
    if by_columns:
        return Source(part, excerpt.columns(source.stored), excerpt.columns(source.floats))
    return Source(part, excerpt.rows(source.stored, each), excerpt.rows(source.floats, each))


def _check(artifact: Path, architecture: str, values: dict[str, bytes], excerpt: Excerpt) -> None:
    """See ``excerpted_entries``."""
    count = values.get(f"{architecture}{_LAYERS}", b"")
    if not _is_integer(count) or decoded(count) != excerpt.of:
        raise CheckpointError(
            f"{artifact.name}: {architecture}{_LAYERS} is not {excerpt.of}, so it cannot be cut"
        )
    pattern = values.get(f"{architecture}{_PATTERN}", b"")
    if not excerpt.is_prefix and not _is_per_layer(pattern, excerpt):
        raise CheckpointError(
            f"{artifact.name}: {architecture}{_PATTERN} has no item for every layer to be cut by"
        )
    named = family_named(architecture)
    if named is not None and excerpt.of in named[1].own_rules:
        raise CheckpointError(
            f"{artifact.name}: llama.cpp scales a model of {excerpt.of} layers by a rule of its own"
        )


def _excerpted(key: str, value: bytes, architecture: str, excerpt: Excerpt) -> bytes:
    """The value of a key in an excerpt. A number of layers that is wrong in the artifact is as wrong here."""
    if not key.startswith(f"{architecture}."):
        return value
    if _is_per_layer(value, excerpt):
        size = item_size(value)
        items = [value[16 + size * layer : 16 + size * (layer + 1)] for layer in excerpt.layers]
        return value[:8] + struct.pack("<Q", len(items)) + b"".join(items)
    left_out = {
        f"{architecture}{_LAYERS}": excerpt.of - len(excerpt.layers),
        f"{architecture}{_SHARING}": excerpt.of - excerpt.own - excerpt.sharing,
    }
    if key in left_out and _is_integer(value):
        number = int.from_bytes(value[4:], "little") - left_out[key]
        return value[:4] + max(number, 0).to_bytes(len(value) - 4, "little")
    return value


def _is_integer(value: bytes) -> bool:
    """Whether an entry's value is one integer."""
    return len(value) > 4 and int.from_bytes(value[:4], "little") in _INTEGERS


def _is_per_layer(value: bytes, excerpt: Excerpt) -> bool:
    """Whether an entry's value is an array with an item of a fixed size for every layer."""
    return bool(item_size(value)) and int.from_bytes(value[8:16], "little") == excerpt.of
