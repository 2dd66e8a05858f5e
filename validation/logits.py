"""Logits on disk: float32 ``[positions, vocabulary]`` in NumPy's .npy form, mapped and never held whole.

A vocabulary of 262144 and 512 positions make 0.5 GB. Every producer writes row by row, every reader maps.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from converter.errors import ValidationError

_CHUNK = 1 << 22


def create_logits(path: Path, positions: int, vocabulary: int) -> NDArray[np.float32]:
    """A new file of logits, float32 ``[positions, vocabulary]``, mapped for writing.

    Its blocks are allocated at once, so that a full disk is an ``OSError`` here and not a SIGBUS later.
    """
    logits: NDArray[np.float32] = open_memmap(path, "w+", np.float32, (positions, vocabulary))
    if hasattr(os, "posix_fallocate"):  # absent on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return logits


class LogitRows:
    """A file of logits that is written and read back by rows, without a map: its pages would count as
    memory of this process. A context manager, which closes it."""

    def __init__(self, path: Path, positions: int, vocabulary: int) -> None:
        logits: Any = create_logits(path, positions, vocabulary)
        self._vocabulary = vocabulary
        self._offset: int = logits.offset
        del logits
        self._file: IO[bytes] = path.open("r+b", buffering=0)
        self._end = self._offset

    def __enter__(self) -> LogitRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: NDArray[np.float32]) -> None:
        """Add rows ``[positions, vocabulary]`` to those that were written."""
        view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.seek(self._end)
        self._end += len(view)
        while view:  # an unbuffered file may take a part
            view = view[self._file.write(view) :]

    def read(self, index: int) -> NDArray[np.float32]:
        """One row ``[vocabulary]``."""
        self._file.seek(self._offset + 4 * index * self._vocabulary)
        row: NDArray[np.float32] = np.fromfile(self._file, np.float32, self._vocabulary)
        return row


def map_logits(path: Path, positions: int) -> NDArray[np.float32]:
    """Map a file of logits read-only; ``ValidationError`` unless it holds ``positions`` rows of float32."""
    try:
        logits: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValidationError(f"{path.name}: not a readable file of logits ({error})") from error
    if logits.dtype != np.float32 or logits.ndim != 2 or logits.shape[0] != positions:
        raise ValidationError(
            f"{path.name}: {logits.dtype} {logits.shape} where {positions} positions were expected"
        )
    return logits


def checksum(path: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            value = zlib.crc32(piece, value)
    return value


def next_tokens(sequences: Sequence[Sequence[int]], firsts: Sequence[int] | None = None) -> NDArray[np.int64]:
    """For every position of all sequences in turn the token that follows it, -1 where none does. Positions of
    a sequence begin at its index in ``firsts``."""
    starts = firsts or [0] * len(sequences)
    return np.array(
        [token for ids, first in zip(sequences, starts, strict=True) for token in (*ids[first + 1 :], -1)],
        np.int64,
    )
