"""Tensor data, written in parallel by row ranges.

Every thread takes the next range of rows, reads it, recovers codes, packs and writes them at the known
offset; reading, recovery, packing and writing release the GIL. Memory is one range per thread, whatever
the size of the model. Ordinary reads and writes, not maps: mapped pages would count as resident.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import DestinationError, TargetError
from converter.weight import NEEDS_F32_SCALE, OFF_LATTICE, STORED_BYTES, Weight
from targets.gguf.header import Layout, Place
from targets.gguf.packing import FROM_FLOATS, LARGEST, pack_q4_0, row_bytes
from targets.gguf.storage import Q4_0_LATTICE

#: Values per range: codes, scales and bytes of one stay in a core's L2 cache.
RANGE: Final = 1 << 19

Bytes = NDArray[np.uint8]
#: ``Weight``'s status of blocks.
Statuses = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer saw: blocks of Q4_0 tensors, how many of them lie on no lattice, by weight, and how
    many need a scale that float16 does not hold."""

    blocks: int
    off_lattice: Mapping[str, int]
    rounded: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows ``start`` to ``stop`` of a weight, and where their bytes go."""

    weight: Weight
    format: str
    start: int
    stop: int
    file: int
    offset: int


def write_data(
    layout: Layout,
    weights: Mapping[str, Weight],
    made: Mapping[str, Bytes],
    add: float,
    progress: Callable[[int], None],
    threads: int | None = None,
) -> Written:
    """Write the data of every tensor of ``layout`` into its file.

    ``weights`` maps canonical names to weights, ``made`` the stored names of tensors that come from no
    weight to their bytes; ``add`` is added to norm weights. ``progress`` is called with the bytes of
    checkpoint read, by one thread at a time. Raises ``DestinationError`` if a file cannot take its size.
    """
    handles = [_reserve(path, size) for path, size in zip(layout.files, layout.sizes, strict=True)]
    try:
        for place in layout.places:
            if place.tensor.weight is None:
                _put(
                    handles[place.file], made[place.tensor.stored_as], place.offset, layout.files[place.file]
                )
        crew = _Crew(_pieces(layout.places, weights), handles, layout.files, add, progress)
        return crew.run(threads or processors())
    finally:
        for handle in handles:
            os.close(handle)


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pieces(places: tuple[Place, ...], weights: Mapping[str, Weight]) -> Iterator[_Piece]:
    for place in places:
        if place.tensor.weight is None:
            continue
        weight = weights[place.tensor.weight]
        size = row_bytes(place.tensor.format, weight.columns)
        for start, stop in weight.row_ranges(RANGE):
            yield _Piece(weight, place.tensor.format, start, stop, place.file, place.offset + start * size)


class _Crew:
    """Threads that share one iterator of pieces; the first failure stops them all."""

    def __init__(
        self,
        pieces: Iterator[_Piece],
        handles: list[int],
        files: tuple[Path, ...],
        add: float,
        progress: Callable[[int], None],
    ) -> None:
        self._pieces = pieces
        self._handles = handles
        self._files = files
        self._add = add
        self._progress = progress
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._blocks = 0
        self._off_lattice: dict[str, int] = {}
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
        return Written(self._blocks, self._off_lattice, self._rounded)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    piece = next(self._pieces, None)
                if piece is None:
                    return
                self._account(piece, self._write(piece))
        except BaseException as failure:
            with self._lock:
                self._failure = self._failure or failure
            self._stop.set()

    def _write(self, piece: _Piece) -> Statuses:
        data, statuses = encode(piece.weight, piece.format, piece.start, piece.stop, self._add)
        _put(self._handles[piece.file], data, piece.offset, self._files[piece.file])
        return statuses

    def _account(self, piece: _Piece, statuses: Statuses) -> None:
        weight = piece.weight
        values = (piece.stop - piece.start) * weight.columns
        off = int(np.count_nonzero(statuses == OFF_LATTICE))
        rounded = int(np.count_nonzero(statuses == NEEDS_F32_SCALE))
        with self._lock:
            self._blocks += statuses.size
            self._rounded += rounded
            if off:
                self._off_lattice[weight.name] = self._off_lattice.get(weight.name, 0) + off
            self._progress(values * STORED_BYTES.get(weight.stored, 1))


def encode(weight: Weight, format: str, start: int, stop: int, add: float) -> tuple[Bytes, Statuses]:
    """Rows of a weight as bytes of a GGML type, and the status of every lattice block packed. ``add`` is
    added to norm weights, as the model does before it multiplies. Raises ``TargetError`` for values that the
    type would turn into infinities."""
    if format == "Q4_0" and weight.lattice == Q4_0_LATTICE and weight.codes is not None:
        rows = weight.codes(start, stop)
        _check_range(weight, format, rows.scales, LARGEST["F16"])
        return pack_q4_0(rows), rows.status.reshape(-1)
    values = weight.floats(start, stop)
    if add and weight.name.endswith("norm.weight"):
        values = values + np.float32(add)
    if format in LARGEST:
        _check_range(weight, format, values, LARGEST[format])
    return FROM_FLOATS[format](values), np.empty(0, np.uint8)


def _check_range(weight: Weight, format: str, values: NDArray[np.float32], limit: float) -> None:
    largest = max(values.max(initial=0), -values.min(initial=0))
    if largest > limit:
        remedy = "it cannot be stored in GGUF" if weight.lattice else "try --off-lattice bf16"
        raise TargetError(
            f"gguf: {weight.name}: the values of a block are beyond the range of {format}'s float16; {remedy}"
        )


def _reserve(path: Path, size: int) -> int:
    """A file of ``size`` bytes, open for writing, whose space is taken: a full disk is noticed first."""
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            _allocate(handle, size)
        except OSError:
            os.close(handle)
            raise
    except OSError as error:
        raise destination_error(path, error, size) from error
    return handle


def _allocate(handle: int, size: int) -> None:
    """Take ``size`` bytes of space; where the system cannot, only give the file its length."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    return os.ftruncate(handle, size)


def _put(handle: int, data: Bytes, offset: int, path: Path) -> None:
    view = np.ascontiguousarray(data).reshape(-1).data
    try:
        while view:
            count = os.pwrite(handle, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise destination_error(path, error) from error


def destination_error(path: Path, error: OSError, size: int | None = None) -> DestinationError:
    """One line for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f"; {size} bytes are needed" if size is not None else ""
        return DestinationError(f"{path}: the disk is full{needed}; free space or choose another directory")
    return DestinationError(f"{path}: cannot be written: {error.strerror or error}")
