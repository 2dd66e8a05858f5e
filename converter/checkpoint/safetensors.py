"""Safetensors checkpoints, one file or sharded: everything is validated once, then read by byte ranges.

A file begins with the length of a JSON header, eight bytes, little-endian. The header follows and maps tensor
names to ``dtype``, ``shape`` and ``data_offsets`` (begin and end, counted from the end of the header). Behind
it lie the tensors' bytes without a gap. Sharded checkpoints add ``model.safetensors.index.json``, whose
``weight_map`` says which file holds which tensor. Source: https://huggingface.co/docs/safetensors.

Files are read with positioned reads into buffers of the caller's size, never mapped. So resident memory does
not grow with the checkpoint, and several threads may read at once.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.documents import Documents, Files
from converter.errors import CheckpointError
from converter.filenames import INDEX, WEIGHTS
from converter.system.untrusted import PICKLES, kind, parse_object, shown

#: Longest header that the format allows.
HEADER_BYTES: Final = 100_000_000
#: Largest index that is read; that of a model with 100,000 tensors has 10 MB.
_INDEX_BYTES: Final = 32 << 20
_MOST_DIMENSIONS: Final = 8
_LARGEST_SIZE: Final = 1 << 48

#: Bits per value of every dtype that the format knows.
DTYPE_BITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
#: How NumPy reads one value; BF16 as its bit pattern.
_NUMPY: Final[Mapping[str, str]] = {
    "BF16": "<u2",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a file that are a file of their own, such as a member of an archive."""

    #: The name of what lies there.
    name: str
    #: Offset of its first byte.
    begin: int
    #: Number of its bytes.
    size: int


class Shard:
    """One file, or a stretch of one, which is open only while it is read: a checkpoint may have more files
    than a process may have open.

    ``path`` is the file, and ``size`` the length in bytes. ``name`` and ``where`` are what an index and
    messages call it. Raises ``CheckpointError`` for what cannot be opened, is no regular file, or ends before
    the stretch does.
    """

    __slots__ = ("_begin", "_file", "name", "path", "size", "where")

    def __init__(self, path: Path, stretch: Stretch | None = None) -> None:
        self.path = path
        self.name = path.name if stretch is None else stretch.name
        self.where = str(path) if stretch is None else f"{path}: {stretch.name}"
        self._begin = 0 if stretch is None else stretch.begin
        with self._open() as descriptor:
            status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: is not a regular file")
        self._file = status.st_dev, status.st_ino
        self.size = status.st_size if stretch is None else stretch.size
        if self._begin + self.size > status.st_size:
            raise CheckpointError(f"{self.where}: the file is cut off")

    def read_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill ``buffer`` from byte ``offset`` on; raises ``CheckpointError`` that names ``what``."""
        done, begin = 0, self._begin + offset
        with self._open() as descriptor:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != self._file:
                raise CheckpointError(f"{self.path}: was replaced while it was read")
            while done < len(buffer):
                try:
                    count = os.preadv(descriptor, [buffer[done:]], begin + done)
                except OSError as error:
                    raise CheckpointError(
                        f"{self.where}: {what} cannot be read: {error.strerror or error}"
                    ) from error
                if count == 0:
                    raise CheckpointError(f"{self.where}: ends within {what}; the file is cut off")
                done += count

    @contextmanager
    def _open(self) -> Iterator[int]:
        """A descriptor of the file, for as long as the block runs."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be opened: {error.strerror or error}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, offset: int, count: int, what: str) -> bytes:
        """``count`` bytes from ``offset`` on."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset, what)
        return bytes(buffer)


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint, stored row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Shard
    #: Of its first byte in the shard.
    offset: int
    #: Its length in the shard.
    bytes: int

    @property
    def columns(self) -> int:
        """Length of the last dimension (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def where(self) -> str:
        """File and tensor, to begin a message with."""
        return f"{self.shard.where}: tensor {shown(self.name)}"

    def read_raw(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes ``[stop - start]`` of the tensor as stored, whatever its dtype is. Raises ``CheckpointError``
        if the file has become shorter."""
        if not 0 <= start <= stop <= self.bytes:
            raise ValueError(f"bytes {start}..{stop} of {self.bytes}")
        values = np.empty(stop - start, np.uint8)
        self.shard.read_into(values.data, self.offset + start, f"tensor {shown(self.name)}")
        return values

    def read_rows(self, start: int, stop: int) -> NDArray[np.generic]:
        """Rows ``[stop - start, columns]`` as stored, little-endian; bfloat16 as uint16 bit patterns.

        Raises ``CheckpointError`` if the file has become shorter or the dtype has no whole bytes.
        """
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows {start}..{stop} of {self.rows}")
        if self.dtype not in _NUMPY:
            raise CheckpointError(f"{self.where} has dtype {self.dtype}, which is not read")
        values = np.empty((stop - start, self.columns), np.dtype(_NUMPY[self.dtype]))
        if values.size:
            begin = self.offset + start * self.columns * values.itemsize
            self.shard.read_into(values.reshape(-1).view(np.uint8).data, begin, f"tensor {shown(self.name)}")
        return values


@dataclass(frozen=True, slots=True)
class Shards:
    """The tensors of a checkpoint, validated."""

    #: What messages call the file that lists them.
    where: str
    #: The files of the system that were read.
    files: tuple[Path, ...]
    #: By source name.
    tensors: Mapping[str, SourceTensor]


class ShardFiles(Files, Protocol):
    """Files among which those with the weights are opened, to be read by byte ranges."""

    def names(self) -> Sequence[str]:
        """Names of all files, sorted. Raises ``CheckpointError``."""

    def shard(self, name: str) -> Shard:
        """One of them, open. Raises ``CheckpointError``."""


def open_shards(files: ShardFiles) -> Shards:
    """Open ``model.safetensors``, or else what ``model.safetensors.index.json`` names.

    Every header is validated here: lengths, offsets, shapes, dtypes, names. Raises ``CheckpointError``.
    """
    if WEIGHTS in files:
        tensors = {tensor.name: tensor for tensor in read_header(files.shard(WEIGHTS))}
        return Shards(files.where(WEIGHTS), (files.path(WEIGHTS),), tensors)
    if INDEX in files:
        return _open_index(files)
    raise _nothing_to_read(files)


def has_shards(files: Files) -> bool:
    """Whether all files with weights are there; raises ``CheckpointError`` for a damaged index."""
    if WEIGHTS in files or INDEX not in files:
        return WEIGHTS in files
    return all(file in files for file in set(read_index(files).values()))


def _nothing_to_read(files: ShardFiles) -> CheckpointError:
    """Why files without a safetensors checkpoint are refused."""
    names = files.names()
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{files.where(pickles[0])}: pickle checkpoints are not read, because loading one can run code; "
            "convert it to safetensors first"
        )
    if not names:
        return CheckpointError(f"{files}: is empty")
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return CheckpointError(f"{files}: has {others[0]} but neither {WEIGHTS} nor {INDEX}")
    return CheckpointError(f"{files}: holds no checkpoint (neither {WEIGHTS} nor {INDEX})")


def read_index(files: Files) -> dict[str, str]:
    """The file of every tensor, by name, as ``model.safetensors.index.json`` says; raises
    ``CheckpointError``."""
    index = files.where(INDEX)
    weight_map = Documents(files).settings(INDEX, _INDEX_BYTES).section("weight_map")
    if not weight_map or not weight_map.values:
        raise CheckpointError(f"{index}: has no weight_map")
    return {name: _shard_name(index, name, file) for name, file in weight_map.values.items()}


def _open_index(files: ShardFiles) -> Shards:
    expected = read_index(files)
    tensors: dict[str, SourceTensor] = {}
    read = [files.path(INDEX)]
    for file in sorted(set(expected.values())):
        if file not in files:
            raise CheckpointError(f"{files.where(file)}: is missing; {INDEX} names it")
        read.append(files.path(file))
        for tensor in read_header(files.shard(file)):
            other = tensors.get(tensor.name)
            if other:
                raise CheckpointError(f"{tensor.where} is in {other.shard.name} as well")
            tensors[tensor.name] = tensor
    for name, file in expected.items():
        if name not in tensors or tensors[name].shard.name != file:
            raise CheckpointError(
                f"{files.where(file)}: lacks tensor {shown(name)}, which {INDEX} says it holds"
            )
    return Shards(files.where(INDEX), tuple(read), tensors)


def _shard_name(index: str, tensor: str, file: object) -> str:
    """The name of a shard: a plain file name, so that no index leads out of its directory."""
    if not isinstance(file, str):
        raise CheckpointError(f"{index}: tensor {shown(tensor)} is mapped to {kind(file)}, not to a file")
    plain = file and file.isprintable() and not set("/\\:") & set(file) and not file.startswith(".")
    if not plain:
        raise CheckpointError(f"{index}: shard {shown(file)} is not a plain file name; refused")
    if file.lower().endswith(PICKLES):
        raise CheckpointError(
            f"{index}: shard {shown(file)} is a pickle, which is not read, because loading one can run code"
        )
    if not file.endswith(".safetensors"):
        raise CheckpointError(f"{index}: shard {shown(file)} is not a .safetensors file")
    return file


def read_header(shard: Shard) -> tuple[SourceTensor, ...]:
    """The tensors of one file in the order of their bytes; raises ``CheckpointError``."""
    where = shard.where
    if shard.size < 8:
        raise CheckpointError(f"{where}: {shard.size} bytes are too short for a safetensors file")
    length = int.from_bytes(shard.read(0, 8, "the header's length"), "little")
    if length > HEADER_BYTES:
        raise CheckpointError(
            f"{where}: header of {length} bytes is above the format's limit of {HEADER_BYTES}"
        )
    if length > shard.size - 8:
        raise CheckpointError(
            f"{where}: header of {length} bytes is larger than the file ({shard.size} bytes)"
        )
    try:
        text = shard.read(8, length, "the header").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: header is not UTF-8 at byte {error.start}") from error
    header = parse_object(text, f"{where}: header")
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = [_tensor(shard, name, entry, data) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    _check_gapless(shard, tensors, data)
    return tuple(tensors)


def _tensor(shard: Shard, name: str, entry: object, data: int) -> SourceTensor:
    """One entry of a header, checked by itself; ``data`` is where the tensors' bytes begin."""
    where = f"{shard.where}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is described by {kind(entry)}, expected an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has unknown dtype {shown(dtype)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise CheckpointError(f"{where} has shape {shown(shape)}, expected a list of integers")
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= size <= _LARGEST_SIZE for size in shape):
        raise CheckpointError(f"{where} has shape {shown(shape)}, which is out of bounds")
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(one) is int for one in offsets):
        raise CheckpointError(f"{where} has data_offsets {shown(offsets)}, expected two integers")
    begin, end = offsets
    if begin < 0 or end < begin:
        raise CheckpointError(f"{where} has data_offsets {shown(offsets)}, which are negative or reversed")
    if end > shard.size - data:
        raise CheckpointError(
            f"{where} ends at byte {shown(end)} of {shard.size - data}: cut off, or the header is wrong"
        )
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise CheckpointError(
            f"{where} has {end - begin} bytes, but {dtype} {shape} takes {shown(-(-bits // 8))}"
        )
    return SourceTensor(name, dtype, tuple(shape), shard, data + begin, end - begin)


def _check_gapless(shard: Shard, tensors: list[SourceTensor], data: int) -> None:
    """As the format demands, tensors follow each other without overlap or gap, up to the file's end."""
    end = data
    for tensor in tensors:
        if tensor.offset < end:
            raise CheckpointError(f"{tensor.where} overlaps the tensor before it")
        if tensor.offset > end:
            raise CheckpointError(f"{tensor.where} leaves a gap of {tensor.offset - end} bytes before it")
        end += tensor.bytes
    if end != shard.size:
        raise CheckpointError(f"{shard.where}: has {shard.size - end} bytes behind its last tensor")
