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
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.errors import CheckpointError
from converter.filenames import INDEX, WEIGHTS
from converter.system.untrusted import PICKLES, Settings, kind, parse_object, read_object, shown

#: Longest header that the format allows.
HEADER_BYTES: Final = 100_000_000
_INDEX_BYTES: Final = 100_000_000
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


class Shard:
    """One open file. ``size`` is its length in bytes; it is closed with its last user."""

    __slots__ = ("__weakref__", "_descriptor", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror or error}") from error
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: is not a regular file")
        self.size = status.st_size

    def read_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill ``buffer`` from byte ``offset`` on; raises ``CheckpointError`` that names ``what``."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: {what} cannot be read: {error.strerror or error}"
                ) from error
            if count == 0:
                raise CheckpointError(f"{self.path}: ends within {what}; the file is cut off")
            done += count

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
        return f"{self.shard.path}: tensor {shown(self.name)}"

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
    """A validated checkpoint."""

    directory: Path
    #: Those that were read.
    files: tuple[Path, ...]
    #: By source name.
    tensors: Mapping[str, SourceTensor]


def open_shards(directory: Path) -> Shards:
    """Open ``model.safetensors``, or else what ``model.safetensors.index.json`` names.

    Every header is validated here: lengths, offsets, shapes, dtypes, names. Raises ``CheckpointError``.
    """
    if os.path.lexists(directory / WEIGHTS):
        path = directory / WEIGHTS
        return Shards(directory, (path,), {tensor.name: tensor for tensor in read_header(Shard(path))})
    if os.path.lexists(directory / INDEX):
        return _open_index(directory)
    raise _nothing_to_read(directory)


def _nothing_to_read(directory: Path) -> CheckpointError:
    """Why a directory without a safetensors checkpoint is refused."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return CheckpointError(f"{directory}: no such directory")
    except NotADirectoryError:
        return CheckpointError(f"{directory}: is not a directory")
    except OSError as error:
        return CheckpointError(f"{directory}: cannot be read: {error.strerror or error}")
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{directory / pickles[0]}: pickle checkpoints are not read, because loading one can run code; "
            "convert it to safetensors first"
        )
    if not names:
        return CheckpointError(f"{directory}: is empty")
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return CheckpointError(f"{directory}: has {others[0]} but neither {WEIGHTS} nor {INDEX}")
    return CheckpointError(f"{directory}: holds no checkpoint (neither {WEIGHTS} nor {INDEX})")


def read_index(index: Path) -> dict[str, str]:
    """The file of every tensor, by name, as ``model.safetensors.index.json`` says; raises
    ``CheckpointError``."""
    weight_map = Settings(read_object(index, _INDEX_BYTES), str(index)).section("weight_map")
    if not weight_map or not weight_map.values:
        raise CheckpointError(f"{index}: has no weight_map")
    return {name: _shard_name(index, name, file) for name, file in weight_map.values.items()}


def _open_index(directory: Path) -> Shards:
    index = directory / INDEX
    expected = read_index(index)
    tensors: dict[str, SourceTensor] = {}
    files = [index]
    for file in sorted(set(expected.values())):
        path = directory / file
        if not os.path.lexists(path):
            raise CheckpointError(f"{path}: is missing; {INDEX} names it")
        files.append(path)
        for tensor in read_header(Shard(path)):
            other = tensors.get(tensor.name)
            if other:
                raise CheckpointError(f"{tensor.where} is in {other.shard.path.name} as well")
            tensors[tensor.name] = tensor
    for name, file in expected.items():
        if name not in tensors or tensors[name].shard.path.name != file:
            raise CheckpointError(
                f"{directory / file}: lacks tensor {shown(name)}, which {INDEX} says it holds"
            )
    return Shards(directory, tuple(files), tensors)


def _shard_name(index: Path, tensor: str, file: object) -> str:
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
    path = shard.path
    if shard.size < 8:
        raise CheckpointError(f"{path}: {shard.size} bytes are too short for a safetensors file")
    length = int.from_bytes(shard.read(0, 8, "the header's length"), "little")
    if length > HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header of {length} bytes is above the format's limit of {HEADER_BYTES}"
        )
    if length > shard.size - 8:
        raise CheckpointError(
            f"{path}: header of {length} bytes is larger than the file ({shard.size} bytes)"
        )
    try:
        text = shard.read(8, length, "the header").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: header is not UTF-8 at byte {error.start}") from error
    header = parse_object(text, f"{path}: header")
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = [_tensor(shard, name, entry, data) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    _check_gapless(shard, tensors, data)
    return tuple(tensors)


def _tensor(shard: Shard, name: str, entry: object, data: int) -> SourceTensor:
    """One entry of a header, checked by itself; ``data`` is where the tensors' bytes begin."""
    where = f"{shard.path}: tensor {shown(name)}"
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
        raise CheckpointError(f"{shard.path}: has {shard.size - end} bytes behind its last tensor")
