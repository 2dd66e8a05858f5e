"""A GGUF file's own weights as float32, under its own metadata.

llama.cpp rounds activations to 8 bits where it multiplies with quantised weights (to 16 where it does with
F16 and BF16). With float32 weights it rounds nothing, so that what it then computes shows the graph and the
metadata alone. The key-values are the artifact's, byte for byte; a model in several files becomes one, so
the keys ``split.*`` are left out.

A table in which rows are only looked up stays as it is: llama.cpp dequantises such rows and multiplies
nothing.

A model that is too large for this can be cut to an excerpt (``targets.gguf.excerpt``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from converter.checkpoint.excerpt import Excerpt
from converter.system.processors import processors
from converter.system.progress import StageProgress
from targets.gguf.excerpt import excerpted_entries, excerpted_tensors
from targets.gguf.metadata import Contents, Tensor, read_entries
from targets.gguf.names import PER_LAYER_EMBEDDING
from targets.gguf.reading import Source, split_files, stored_tensors
from targets.writing import RANGE, Bytes, reserved

_F32: Final = gguf.GGMLQuantizationType.F32
_VERSION: Final = 3
_SPLIT: Final = "split."
_HEAD: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class _Copy:
    """One tensor of the widened file."""

    #: Where it comes from.
    source: Source
    #: Whether it becomes float32.
    widened: bool
    #: What it takes then.
    bytes: int
    #: From the beginning of the tensors' data.
    offset: int

    @property
    def tensor(self) -> Tensor:
        """Its description, with the type that it has in the artifact."""
        return self.source.tensor

    @property
    def rows(self) -> int:
        """Rows of the tensor; one of a single dimension is one row."""
        return math.prod(self.tensor.shape[:-1])

    def data(self, start: int, stop: int) -> Bytes:
        """Rows as they stand in the widened file."""
        if self.widened:
            return self.source.floats(start, stop).reshape(-1).view(np.uint8)
        return self.source.stored(start, stop).reshape(-1)


def widened_bytes(artifact: Path, excerpt: Excerpt | None = None) -> int:
    """Bytes of the file that ``widen`` writes. Raises ``CheckpointError`` as it does."""
    contents = _contents(artifact, excerpt)
    copies = _copies(artifact, _alignment(contents), excerpt)
    return _padded(len(_header(contents, copies)), _alignment(contents)) + _length(copies)


def widen(artifact: Path, path: Path, progress: StageProgress, excerpt: Excerpt | None = None) -> None:
    """Write the model whose (first) file is ``artifact`` to ``path``, with float32 weights, or an excerpt.

    ``progress`` counts the bytes written. Memory is bounded by ranges of rows. Raises ``CheckpointError`` for
    a damaged artifact, one with a type that cannot be dequantised and one of which ``excerpt`` cannot be
    made; ``DestinationError`` if ``path`` cannot be written."""
    contents = _contents(artifact, excerpt)
    alignment = _alignment(contents)
    copies = _copies(artifact, alignment, excerpt)
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
        step = max(1, RANGE // max(1, copy.tensor.shape[-1]))
        for start in range(0, copy.rows, step):
            yield copy, start, min(start + step, copy.rows)


def _copies(artifact: Path, alignment: int, excerpt: Excerpt | None) -> list[_Copy]:
    sources = stored_tensors(artifact)
    if excerpt is not None:
        sources = excerpted_tensors(artifact, sources, excerpt)
    looked_up = {PER_LAYER_EMBEDDING}
    if any(source.tensor.name == _HEAD for source in sources):
        looked_up.add(_EMBEDDING)  # else the head multiplies with it too
    copies: list[_Copy] = []
    offset = 0
    for source in sources:
        tensor = source.tensor
        widened = tensor.type != _F32 and tensor.name not in looked_up
        size = 4 * math.prod(tensor.shape) if widened else tensor.bytes
        copies.append(_Copy(source, widened, size, offset))
        offset += _padded(size, alignment)
    return copies


def _contents(artifact: Path, excerpt: Excerpt | None) -> Contents:
    """What the (first) file says, with the keys of an excerpt; those of split models are left out."""
    path = split_files(artifact)[0]
    contents = read_entries(path)
    entries = tuple((key, value) for key, value in contents.entries if not key.startswith(_SPLIT))
    if excerpt is not None:
        entries = excerpted_entries(path, entries, contents.metadata.architecture, excerpt)
    return replace(contents, entries=entries)


def _header(contents: Contents, copies: list[_Copy]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(copies), len(contents.entries))]
    for key, value in contents.entries:
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
