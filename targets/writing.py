"""Files of tensor data, written in parallel by row ranges, for every target that stores them.

Every thread takes the next piece (a range of rows), reads it, encodes it and writes the bytes at their known
offsets. Reading, recovery, packing and writing release the GIL. Memory is one range per thread, whatever the
size of the model. Ordinary reads and writes, not maps: mapped pages would count as resident.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.weight import NEEDS_F32_SCALE, OFF_LATTICE, Weight
from converter.errors import DestinationError
from converter.system.processors import processors
from targets.target import BlockCounts

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")
#: Values per range: codes, scales and bytes of one stay in a core's L2 cache.
RANGE: Final = 1 << 19

Bytes = NDArray[np.uint8]
#: ``Weight``'s status of blocks.
Statuses = NDArray[np.uint8]
#: Statuses of rows without blocks.
NO_BLOCKS: Final[Statuses] = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer saw."""

    #: Blocks written as codes of a lattice.
    blocks: int
    #: How many of them lie on no lattice, by weight.
    off_lattice: Mapping[str, int]
    #: How many values lie in those, by weight.
    off_values: Mapping[str, int]
    #: How many blocks need a scale that float16 does not hold and have been rounded.
    rounded: int

    @property
    def counts(self) -> BlockCounts:
        """The blocks of all weights together."""
        return BlockCounts(self.blocks, self.rounded, sum(self.off_lattice.values()))


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as an artifact stores them."""

    #: ``(offset, bytes)`` of every stretch, offsets in bytes from the file's beginning.
    stretches: tuple[tuple[int, Bytes], ...]
    #: The status of every lattice block among them.
    statuses: Statuses


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``stop`` of a weight, for one file."""

    weight: Weight
    start: int
    stop: int
    #: Number of the file.
    file: int
    #: Reads and packs them.
    encode: Callable[[], Encoded]


@dataclass(frozen=True, slots=True)
class Output:
    """A file that is open for writing."""

    path: Path
    handle: int

    def put(self, data: Bytes, offset: int) -> None:
        """Write all of ``data`` from byte ``offset`` on; raises ``DestinationError``."""
        view = np.ascontiguousarray(data).reshape(-1).data
        try:
            while view:
                count = os.pwrite(self.handle, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise destination_error(self.path, error) from error


@contextmanager
def reserved(paths: Sequence[Path], sizes: Sequence[int]) -> Iterator[tuple[Output, ...]]:
    """Files of the given sizes in bytes, made where absent, whose space is taken, closed at the end: a full
    disk is noticed before anything is computed. Raises ``DestinationError``."""
    with ExitStack() as stack:
        outputs = []
        for path, size in zip(paths, sizes, strict=True):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
                stack.callback(os.close, handle)
                _allocate(handle, size)
            except OSError as error:
                raise destination_error(path, error, size) from error
            outputs.append(Output(path, handle))
        yield tuple(outputs)


def write_pieces(
    outputs: Sequence[Output],
    pieces: Iterator[Piece],
    progress: Callable[[int], None],
    threads: int | None = None,
) -> Written:
    """Encode and write all ``pieces``, in ``threads`` threads (as many as there are processors).

    ``progress`` is called with the bytes of checkpoint read, by one thread at a time. Raises what the first
    failing piece raised, when every thread has ended.
    """
    count = threads or processors()
    for output in outputs:
        _LOG.debug("%s: written by %d threads", output.path, count)
    return _Crew(outputs, pieces, progress).run(count)


class _Crew:
    """Threads that share one iterator of pieces; the first failure stops them all."""

    def __init__(
        self, outputs: Sequence[Output], pieces: Iterator[Piece], progress: Callable[[int], None]
    ) -> None:
        self._outputs = outputs
        self._pieces = pieces
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._blocks = 0
        self._off_lattice: Counter[str] = Counter()
        self._off_values: Counter[str] = Counter()
        self._rounded = 0

    def run(self, count: int) -> Written:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # an interrupt reaches the main thread only
            self._stop.set()
            for thread in threads:
                thread.join()
            raise
        if self._failure is not None:
            raise self._failure
        return Written(self._blocks, self._off_lattice, self._off_values, self._rounded)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    piece = next(self._pieces, None)
                if piece is None:
                    return
                encoded = piece.encode()
                for offset, data in encoded.stretches:
                    self._outputs[piece.file].put(data, offset)
                self._account(piece, encoded.statuses)
        except BaseException as failure:
            with self._lock:
                self._failure = self._failure or failure
            self._stop.set()

    def _account(self, piece: Piece, statuses: Statuses) -> None:
        weight = piece.weight
        values = (piece.stop - piece.start) * weight.columns
        off = int(np.count_nonzero(statuses == OFF_LATTICE))
        rounded = int(np.count_nonzero(statuses == NEEDS_F32_SCALE))
        with self._lock:
            self._blocks += statuses.size
            self._rounded += rounded
            if off:
                self._off_lattice[weight.name] += off
                self._off_values[weight.name] += off * values // statuses.size
            self._progress(weight.bytes_of(values))


def _allocate(handle: int, size: int) -> None:
    """Give a file its size and take the space; where the system cannot take it, only the size."""
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def destination_error(path: Path, error: OSError, size: int | None = None) -> DestinationError:
    """One line for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f"; {size} bytes are needed" if size is not None else ""
        return DestinationError(f"{path}: the disk is full{needed}; free space or choose another directory")
    return DestinationError(f"{path}: cannot be written: {error.strerror or error}")
