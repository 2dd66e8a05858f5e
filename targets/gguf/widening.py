"""A GGUF file's own weights as float32, under its own metadata.

llama.cpp rounds activations to 8 bits where it multiplies with quantised weights (to 16 where it does with
F16 and BF16). With float32 weights it rounds nothing, so that what it then computes shows the graph and the
metadata alone. The key-values are the artifact's, byte for byte; a model in several files becomes one, so
the keys ``split.*`` are left out.

A table in which rows are only looked up stays as it is: llama.cpp dequantises such rows and multiplies
nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from targets.gguf.metadata import Contents, Tensor, read_entries
from targets.gguf.reading import File, split_files, stored_tensors
from targets.writing import RANGE, Bytes, processors, reserved

_F32: Final = gguf.GGMLQuantizationType.F32
_VERSION: Final = 3
_SPLIT: Final = "split."
_HEAD: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"
_PER_LAYER_EMBEDDING: Final = "per_layer_token_embd.weight"


@dataclass(frozen=True, slots=True)
class _Copy:
    """One tensor of the widened file: where it comes from, its ``type`` and ``bytes`` there, and its
    ``offset`` from the beginning of the tensors' data."""

    tensor: Tensor
    file: File
    floats: Callable[[int, int], NDArray[np.float32]]
    widened: bool
    bytes: int
    offset: int

    @property
    def rows(self) -> int:
        """Rows of the tensor; one of a single dimension is one row."""
        return math.prod(self.tensor.shape[:-1])

    def data(self, start: int, stop: int) -> Bytes:
        """Rows as they stand in the widened file."""
        if self.widened:
            return self.floats(start, stop).reshape(-1).view(np.uint8)
        size = self.tensor.bytes // self.rows
        return self.file.read(self.tensor.offset + start * size, (stop - start) * size)


def widened_bytes(artifact: Path) -> int:
    """Bytes of the file that ``widen`` writes. Raises ``CheckpointError`` for a damaged artifact."""
    contents = read_entries(split_files(artifact)[0])
    copies = _copies(artifact, _alignment(contents))
    return _padded(len(_header(contents, copies)), _alignment(contents)) + _length(copies)


def widen(artifact: Path, path: Path, progress: Callable[[int, int], None]) -> None:
    """Write the model whose (first) file is ``artifact`` to ``path``, with float32 weights.

    ``progress`` counts the bytes written. Memory is bounded by ranges of rows. Raises ``CheckpointError`` for
    a damaged artifact or one with a type that cannot be dequantised, ``DestinationError`` if ``path`` cannot
    be written."""
    contents = read_entries(split_files(artifact)[0])
    alignment = _alignment(contents)
    copies = _copies(artifact, alignment)
    header = _header(contents, copies)
    begin = _padded(len(header), alignment)
    total = begin + _length(copies)
    with reserved([path], [total]) as (output,), ThreadPoolExecutor(processors()) as pool:
        output.put(np.frombuffer(header, np.uint8), 0)

        def write(piece: tuple[_Copy, int, int]) -> int:
            copy, start, stop = piece
            data = copy.data(start, stop)
            output.put(data, begin + copy.offset + start * (copy.bytes // copy.rows))
            return data.nbytes

        done = len(header)
        try:
            for count in pool.map(write, _pieces(copies)):
                done += count
                progress(min(done, total), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress(total, total)  # with the padding between tensors


def _pieces(copies: list[_Copy]) -> Iterator[tuple[_Copy, int, int]]:
    for copy in copies:
        step = max(1, RANGE // copy.tensor.shape[-1])
        for start in range(0, copy.rows, step):
            yield copy, start, min(start + step, copy.rows)


def _copies(artifact: Path, alignment: int) -> list[_Copy]:
    stored = stored_tensors(artifact)
    looked_up = {_PER_LAYER_EMBEDDING}
    if any(tensor.name == _HEAD for tensor, *_ in stored):
        looked_up.add(_EMBEDDING)  # else the head multiplies with it too
    copies: list[_Copy] = []
    offset = 0
    for tensor, file, floats in stored:
        widened = tensor.type != _F32 and tensor.name not in looked_up
        size = 4 * math.prod(tensor.shape) if widened else tensor.bytes
        copies.append(_Copy(tensor, file, floats, widened, size, offset))
        offset += _padded(size, alignment)
    return copies


def _header(contents: Contents, copies: list[_Copy]) -> bytes:
    entries = [(key, value) for key, value in contents.entries if not key.startswith(_SPLIT)]
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(copies), len(entries))]
    for key, value in entries:
        parts += [_text(key), value]
    for copy in copies:
        shape = copy.tensor.shape[::-1]
        kind = _F32 if copy.widened else copy.tensor.type
        parts += [
            _text(copy.tensor.name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, copy.offset),
        ]
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _length(copies: list[_Copy]) -> int:
    return copies[-1].offset + copies[-1].bytes if copies else 0


def _alignment(contents: Contents) -> int:
    alignment = contents.metadata.values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # the reader has checked it
    return alignment


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
