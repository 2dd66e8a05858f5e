"""GGUF files read back and dequantised by gguf-py's rules, independently of how they were written."""

from __future__ import annotations

import math
import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.excerpt import Rows
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import open_at_once
from targets.gguf.metadata import Tensor, read_contents
from targets.gguf.names import tensor_names
from targets.gguf.packing import TO_FLOATS
from targets.gguf.storage import GGML, OFF_LATTICE
from targets.gguf.writing import encode
from targets.target import StoredTensor

_SPLIT: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")


def describe(artifact: Path, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every weight of ``checkpoint`` as stored in ``artifact`` (the first file of a split model).

    The floats are in the checkpoint's own scale: what was added to norms is taken off again. Raises
    ``CheckpointError`` for a damaged file and for a tensor that is missing or has another shape.
    """
    found = {
        tensor.name: (file, tensor)
        for file in map(File, split_files(artifact))
        for tensor in read_contents(file.path)[1]
    }
    names = tensor_names(checkpoint.architecture, checkpoint.weights)
    stored = {}
    for key, weight in checkpoint.weights.items():
        if names[key] not in found:
            raise CheckpointError(f"{artifact}: tensor {names[key]} is missing")
        file, tensor = found[names[key]]
        if tensor.shape != (weight.shape or (1,)):
            raise CheckpointError(
                f"{artifact}: tensor {names[key]} has shape {tensor.shape}, not {weight.shape}"
            )
        offset = checkpoint.architecture.offset_of(key)
        stored[key] = StoredTensor(
            weight=key,
            stored_as=names[key],
            type=tensor.type.name,
            shape=weight.shape,
            bytes=tensor.bytes,
            floats=_Rows(file, tensor, np.float32(offset)),
            rule=_Rule(weight, tensor, offset) if _is_ruled(weight, tensor.type.name) else None,
        )
    return stored


def _is_ruled(weight: Weight, type_name: str) -> bool:
    """Whether this target stores a weight in the type: its codes, or numbers that are rounded to it."""
    return type_name in OFF_LATTICE.values() or GGML.kept_scales(weight, type_name) is not None


class File:
    """A file that is open as long as a tensor of it is used; read by positioned reads, never mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = open_at_once(str(path), os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        weakref.finalize(self, os.close, self._handle)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes from byte ``offset`` on; raises ``CheckpointError`` if there are fewer."""
        data = bytearray()
        while len(data) < count:
            try:
                part = os.pread(self._handle, count - len(data), offset + len(data))
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error
            if not part:
                raise CheckpointError(f"{self.path}: not a whole GGUF file: it has become shorter")
            data += part
        return np.frombuffer(data, np.uint8)


class _Bytes:
    """Rows of one tensor as they are stored."""

    def __init__(self, file: File, tensor: Tensor) -> None:
        self._file = file
        self._tensor = tensor

    def __call__(self, start: int, stop: int) -> NDArray[np.uint8]:
        size = self._tensor.bytes // math.prod(self._tensor.shape[:-1])
        data = self._file.read(self._tensor.offset + start * size, (stop - start) * size)
        return data.reshape(stop - start, size)


class _Rows:
    """Dequantised rows of one tensor, minus a constant."""

    def __init__(self, file: File, tensor: Tensor, taken: np.float32) -> None:
        self._file = file
        self._tensor = tensor
        self._taken = taken
        self._rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))

    def __call__(self, start: int, stop: int) -> NDArray[np.float32]:
        size = self._tensor.bytes // self._rows
        data = self._file.read(self._tensor.offset + start * size, (stop - start) * size)
        try:
            return _dequantised(data.reshape(-1, size), self._tensor, self._taken)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self._file.path}: tensor {self._tensor.name} has type {self._tensor.type.name}, "
                "which gguf-py cannot dequantise"
            ) from error


class _Rule:
    """Rows of a weight as this target stores them in the type of a tensor, dequantised in the same way."""

    def __init__(self, weight: Weight, tensor: Tensor, offset: float) -> None:
        self._weight = weight
        self._tensor = tensor
        self._offset = offset

    def __call__(self, start: int, stop: int) -> NDArray[np.float32]:
        data, _ = encode(self._weight, self._tensor.type.name, start, stop, self._offset)
        return _dequantised(data.reshape(stop - start, -1), self._tensor, np.float32(self._offset))


def _dequantised(data: NDArray[np.uint8], tensor: Tensor, taken: np.float32) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # scales of a damaged file
        if quick := TO_FLOATS.get(tensor.type.name):
            values = quick(data)
        else:
            values = gguf.quants.dequantize(data, tensor.type)
    return values - taken if taken else values.astype(np.float32, copy=False)


def split_files(path: Path) -> list[Path]:
    """All files of the model whose (first) file is ``path``; raises ``CheckpointError`` if one is missing."""
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    files = [path.with_name(f"{match[1]}-{index:05d}-of-{count:05d}.gguf") for index in range(1, count + 1)]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, one of {count} files of a split model")
    return files


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a model."""

    #: Its description.
    tensor: Tensor
    #: Its rows as they are stored, bytes ``[rows, bytes of a row]``.
    stored: Rows
    #: Its rows dequantised in the file's own scale, float32 ``[rows, columns]``.
    floats: Rows


def stored_tensors(artifact: Path) -> list[Source]:
    """Every tensor of the model whose (first) file is ``artifact``, in order. Raises ``CheckpointError`` for
    a damaged file."""
    return [
        Source(tensor, _Bytes(file, tensor), _Rows(file, tensor, np.float32(0)))
        for file in map(File, split_files(artifact))
        for tensor in read_contents(file.path)[1]
    ]
