"""GGUF files read back, by gguf-py's reader and its dequantisation: independent of how they were written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint import Checkpoint
from converter.errors import CheckpointError
from targets.gguf.names import tensor_names
from targets.plan import StoredTensor

_SPLIT: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")


def describe(artifact: Path, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every weight of ``checkpoint`` as stored in ``artifact`` (the first file of a split model).

    The floats are in the checkpoint's own scale: what was added to norms is taken off again. Raises
    ``CheckpointError`` for a damaged file and for a tensor that is missing or has another shape.
    """
    found = {tensor.name: tensor for file in split_files(artifact) for tensor in _tensors(file)}
    offset = checkpoint.architecture.norm_offset
    names = tensor_names(checkpoint.architecture, checkpoint.weights)
    stored = {}
    for key, weight in checkpoint.weights.items():
        tensor = found.get(names[key])
        if tensor is None:
            raise CheckpointError(f"{artifact}: tensor {names[key]} is missing")
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        if shape != (weight.shape or (1,)):
            raise CheckpointError(f"{artifact}: tensor {names[key]} has shape {shape}, not {weight.shape}")
        taken = np.float32(offset if key.endswith("norm.weight") else 0.0)
        stored[key] = StoredTensor(
            weight=key,
            stored_as=names[key],
            format=tensor.tensor_type.name,
            shape=weight.shape,
            bytes=int(tensor.n_bytes),
            floats=_Rows(tensor, taken),
        )
    return stored


class _Rows:
    """Dequantised rows of one tensor, minus a constant."""

    def __init__(self, tensor: gguf.ReaderTensor, taken: np.float32) -> None:
        self._type = tensor.tensor_type
        self._rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        self._taken = taken

    def __call__(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(self._rows[start:stop])
        values: NDArray[np.float32] = gguf.quants.dequantize(rows, self._type).astype(np.float32, copy=False)
        return values - self._taken if self._taken else values


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


def _tensors(path: Path) -> Iterator[Any]:
    try:
        yield from gguf.GGUFReader(path).tensors
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # gguf-py checks little: a damaged file ends in any exception
        raise CheckpointError(f"{path}: not a whole GGUF file ({type(error).__name__}: {error})") from error
