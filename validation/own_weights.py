"""An artifact's own weights as a float32 checkpoint, to tell the runtime's error from the weights' error.

Logits of this checkpoint are what a runtime with perfect arithmetic would give for the artifact. Of a table
in which rows are only looked up, it has those of the tokens in question; the others are holes, of zeros. A
model like E2B has half of its weights in one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.canonical_names import EMBEDDING, HEAD, PER_LAYER_EMBEDDING
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Weight
from converter.errors import ValidationError
from converter.filenames import CONFIG, INDEX
from converter.system.amounts import amount
from converter.system.processors import processors
from converter.system.progress import StageProgress, counted, no_progress
from targets.target import StoredTensor
from validation.parallel import in_flight

#: Tables in which rows are looked up; the head multiplies with the first too where it is tied to it.
_TABLES = (EMBEDDING, PER_LAYER_EMBEDDING)
#: Static scales of what a module takes and gives: one each, or one for each channel; 0 for none.
StaticScales = tuple[list[float], list[float]]
#: Bytes of a shard, unless a single tensor is larger.
SHARD = 2 << 30


def write_checkpoint(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    directory: Path,
    progress: StageProgress = no_progress,
    shard: int = SHARD,
    *,
    tokens: Collection[int] | None = None,
) -> None:
    """Write the text model of ``checkpoint`` with the weights of ``stored`` (canonical name to tensor), for
    logits of sequences of ``tokens`` (default: of any).

    The result is float32 safetensors under the text-only class's names, with the text part of the config.
    Memory is bounded by a range of rows. Raises ``ValidationError`` when the artifact lacks a tensor or a
    tensor has another number of values.
    """
    weights = list(checkpoint.weights.values())
    for weight in weights:
        if weight.name not in stored:
            raise ValidationError(f"the artifact has no tensor for {weight.name}")
    shards = _shards(weights, shard)
    index: dict[str, str] = {}
    advance = counted(progress, _values(checkpoint, tokens))
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= {_text_name(weight): file for weight in members}
        ranges = [(weight, rows) for weight in members for rows in _ranges(checkpoint, weight, tokens)]
        _write_shard(directory / file, members, ranges, stored, advance)
    size = 4 * sum(weight.size for weight in weights)
    (directory / INDEX).write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index}), "utf-8"
    )
    (directory / CONFIG).write_text(json.dumps(text_config(checkpoint)), "utf-8")


def static_scales(checkpoint: Checkpoint) -> dict[str, StaticScales]:
    """The checkpoint's grids, by the modules' names in the model that ``write_checkpoint`` leaves."""
    return {
        _text_module(module): (_listed(scales.input), _listed(scales.output))
        for module, scales in checkpoint.grids.items()
    }


def _listed(scales: NDArray[np.float32] | None) -> list[float]:
    return [0.0] if scales is None else scales.tolist()


def needed_disk(checkpoint: Checkpoint, tokens: Collection[int] | None = None) -> int:
    """Bytes that ``write_checkpoint`` writes, and what the files around them take."""
    return 4 * _values(checkpoint, tokens) + (64 << 20)


def disk_shortage(checkpoint: Checkpoint, free: int, tokens: Collection[int] | None = None) -> str | None:
    """One line on the space that ``write_checkpoint`` lacks where ``free`` bytes are left, ``None`` if it has
    enough."""
    needed = needed_disk(checkpoint, tokens)
    if free >= needed:
        return None
    return (
        f"logits of the artifact's own weights need {amount(needed)} of temporary files,"
        f" {amount(free)} are free"
    )


def text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config of the text-only class: ``text_config`` where the checkpoint nests one, else all of it."""
    config: Mapping[str, Any] = checkpoint.config
    nested = config.get("text_config")
    text: dict[str, Any] = dict(nested if isinstance(nested, Mapping) else config)
    if isinstance(nested, Mapping):
        text.setdefault("model_type", checkpoint.architecture.text_type)
    for stale in ("architectures", "auto_map", "quantization_config", "torch_dtype"):
        text.pop(stale, None)
    return text | {"dtype": "float32", "tie_word_embeddings": checkpoint.architecture.tied_head}


def _values(checkpoint: Checkpoint, tokens: Collection[int] | None) -> int:
    """Values that are written for sequences of ``tokens``."""
    return sum(
        (stop - start) * weight.columns
        for weight in checkpoint.weights.values()
        for start, stop in _ranges(checkpoint, weight, tokens)
    )


def _ranges(
    checkpoint: Checkpoint, weight: Weight, tokens: Collection[int] | None
) -> Iterator[tuple[int, int]]:
    """Ranges of a weight's rows that the logits of sequences of ``tokens`` need, ascending."""
    multiplied = checkpoint.architecture.tied_head and weight.name == EMBEDDING
    if tokens is None or multiplied or weight.name not in _TABLES:
        yield from weight.row_ranges()
        return
    # where a table has fewer rows than there are tokens, transformers looks up the first for the rest
    for row in sorted({0, *tokens}):
        if row < weight.rows:
            yield row, row + 1


def _text_name(weight: Weight) -> str:
    return weight.name if weight.name == HEAD else f"model.{weight.name}"


def _text_module(module: str) -> str:
    return module if module == HEAD.rpartition(".")[0] else f"model.{module}"


def _shards(weights: list[Weight], limit: int) -> list[list[Weight]]:
    shards: list[list[Weight]] = []
    room = 0
    for weight in weights:
        if not shards or 4 * weight.size > room:
            shards.append([])
            room = limit
        shards[-1].append(weight)
        room -= 4 * weight.size
    return shards


def _write_shard(
    path: Path,
    weights: list[Weight],
    ranges: Iterable[tuple[Weight, tuple[int, int]]],
    stored: Mapping[str, StoredTensor],
    advance: Callable[[int], None],
) -> None:
    """One safetensors file: length of the header (8 bytes), header in JSON, tensors without gaps, of which
    ``ranges`` of rows are written."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    places = {}
    for weight in weights:
        places[weight.name] = offset
        end = offset + 4 * weight.size
        header[_text_name(weight)] = {
            "dtype": "F32",
            "shape": list(weight.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + offset)

        def read(task: tuple[Weight, tuple[int, int]]) -> tuple[int, NDArray[np.float32]]:
            weight, (start, stop) = task
            place = begin + places[weight.name] + 4 * start * weight.columns
            return place, _rows(stored, weight, start, stop)

        for place, rows in in_flight(read, ranges, processors()):
            file.seek(place)
            file.write(rows.data)
            advance(rows.size)


def _rows(stored: Mapping[str, StoredTensor], weight: Weight, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of an artifact's tensor, contiguous and little-endian."""
    rows = np.ascontiguousarray(stored[weight.name].floats(start, stop), "<f4")
    if rows.size != (stop - start) * weight.columns:
        raise ValidationError(f"{stored[weight.name].stored_as}: {rows.shape} values for {weight.name}")
    return rows
