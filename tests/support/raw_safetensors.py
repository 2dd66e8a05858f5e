"""Safetensors files byte by byte, so that tests can write what no library would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "uint8": "U8"}


def header_of(tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, object]:
    """The header that describes ``tensors``; uint16 arrays are bfloat16 bit patterns."""
    header: dict[str, object] = {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        dtype = DTYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    return header


def write_raw(path: Path, header: bytes | object, data: bytes = b"", length: int | None = None) -> None:
    """A file with any header and any bytes behind it; ``length`` overrides the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """A correct file."""
    write_raw(path, header_of(tensors), b"".join(array.tobytes() for array in tensors.values()))


def write_shards(directory: Path, shards: Mapping[str, Mapping[str, NDArray[np.generic]]]) -> None:
    """A correct sharded checkpoint: file name to tensors."""
    for file, tensors in shards.items():
        write_tensors(directory / file, tensors)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
