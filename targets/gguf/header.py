"""The beginning of a GGUF file: gguf-py's writer, which also says where each tensor's data goes.

Layout (``docs/gguf.md`` of ggml): magic, version, counts, key-values, tensor descriptions, padding to 32
bytes, then the tensors, each padded to 32 bytes. A model in several files carries ``split.no``,
``split.count`` and ``split.tensors.count`` in each (llama.cpp, ``llama_model_loader``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from targets.target import PlannedTensor

ALIGNMENT: Final[int] = gguf.GGUF_DEFAULT_ALIGNMENT
_LENGTHS: Final = tuple(length.to_bytes(8, "little") for length in range(256))


class Items(tuple[Any, ...]):
    """Items of a long metadata array: all strings, all 32-bit integers, or all floats.

    gguf-py 0.19 packs arrays item by item, which takes 2 s for Gemma's 262144 tokens and 514906 merges;
    ``Header`` packs these at once."""

    def packed(self) -> bytes:
        """The items as GGUF stores them: numbers in 4 bytes, strings in UTF-8 after their length in 8."""
        if not isinstance(self[0], str):
            return np.array(self, "<f4" if isinstance(self[0], float) else "<i4").tobytes()
        parts: list[bytes] = []
        for text in self:
            data = text.encode("utf-8")
            size = len(data)
            parts.append(_LENGTHS[size] if size < 256 else size.to_bytes(8, "little"))
            parts.append(data)
        return b"".join(parts)


class Header(gguf.GGUFWriter):  # type: ignore[misc]
    """gguf-py's writer, with ``Items`` packed quickly; the bytes are the same."""

    def _pack_val(self, val: Any, vtype: Any, *args: Any, **named: Any) -> bytes:
        if not isinstance(val, Items) or not val:
            packed: bytes = super()._pack_val(val, vtype, *args, **named)
            return packed
        one = Items(val[:1])
        single: bytes = super()._pack_val(tuple(one), vtype, *args, **named)
        kind = single[: -8 - len(one.packed())]
        return kind + len(val).to_bytes(8, "little") + val.packed()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's data lies."""

    tensor: PlannedTensor
    #: Index of the file.
    file: int
    #: In bytes from the file's beginning.
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Files of a model, and the place of every tensor."""

    files: tuple[Path, ...]
    #: The files' whole sizes in bytes.
    sizes: tuple[int, ...]
    places: tuple[Place, ...]


def padded(size: int) -> int:
    """``size`` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def groups(tensors: Iterable[PlannedTensor], limit: int | None) -> list[list[PlannedTensor]]:
    """Tensors by file, in order. A file is closed before its tensors would exceed ``limit`` bytes, so only a
    tensor larger than that makes a larger file, alone (as ``gguf.GGUFWriter`` does)."""
    result: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if limit and result[-1] and size + tensor.bytes > limit:
            result.append([])
            size = 0
        result[-1].append(tensor)
        size += tensor.bytes
    return result


def file_names(stem: str, count: int) -> list[str]:
    """llama.cpp's names of ``count`` files: ``STEM.gguf``, or ``STEM-00001-of-00003.gguf`` and so on."""
    if count == 1:
        return [f"{stem}.gguf"]
    return [f"{stem}-{index:05d}-of-{count:05d}.gguf" for index in range(1, count + 1)]


def write_header(header: Header, path: Path, tensors: Sequence[PlannedTensor], limit: int | None) -> Layout:
    """Write everything before the data of a model whose unsplit file would be ``path``.

    ``header`` holds the metadata. Raises ``OSError``.
    """
    files = groups(tensors, limit)
    header.split_max_size = limit if limit and len(files) > 1 else 0
    for tensor in tensors:
        shape = tensor.shape or (1,)
        header.add_tensor_info(
            tensor.stored_as, shape, float, tensor.bytes, gguf.GGMLQuantizationType[tensor.type]
        )
    header.write_header_to_file(path)
    header.write_kv_data_to_file()
    header.write_ti_data_to_file()
    assert header.fout is not None
    paths = tuple(Path(stream.name) for stream in header.fout)
    ends = [padded(stream.tell()) for stream in header.fout]
    header.close()
    places: list[Place] = []
    for index, group in enumerate(files):
        for tensor in group:
            places.append(Place(tensor, index, ends[index]))
            ends[index] += padded(tensor.bytes)
    return Layout(paths, tuple(ends), tuple(places))
