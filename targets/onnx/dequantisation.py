"""Stored bytes as float32 rows, by onnxruntime's rules and independently of how they were packed.

Codes lie in blocks along a row, the first in the lowest bits of a byte. Without a zero point the middle code
stands for zero. A block has one scale (onnxruntime, ``docs/ContribOperators.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.safetensors import Shard
from converter.system.untrusted import shown

Floats = NDArray[np.float32]

#: Bytes per item of the types in which weights are stored.
ITEM_BYTES: Final = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2, "UINT8": 1}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of an initializer."""

    name: str
    #: How many there are.
    size: int
    #: The file that has them, or those of the graph itself.
    source: Shard | bytes
    #: Where they begin in a file.
    offset: int = 0

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes from byte ``start`` on; ``CheckpointError`` if the file has become shorter."""
        if isinstance(self.source, bytes):
            return np.frombuffer(self.source, np.uint8, count, start)
        data = np.empty(count, np.uint8)
        self.source.read_into(data.data, self.offset + start, f"initializer {shown(self.name)}")
        return data

    def numbers(self, start: int, count: int, dtype: str) -> Floats:
        """``count`` numbers of an ONNX ``dtype`` from number ``start`` on, exactly, as float32."""
        width = ITEM_BYTES[dtype]
        data = self.read(start * width, count * width)
        if dtype == "BFLOAT16":
            return bf16_floats(data.view("<u2"))
        return data.view("<f4" if dtype == "FLOAT" else "<f2").astype(np.float32)


def narrowed(values: Floats, casts: frozenset[str]) -> Floats:
    """Float32 ``values`` as they come out of casts to the given ONNX types."""
    if "FLOAT16" in casts:
        with np.errstate(over="ignore"):
            values = values.astype(np.float16).astype(np.float32)
    return bf16_floats(bf16_bits(values)) if "BFLOAT16" in casts else values


@dataclass(frozen=True, slots=True)
class Numbers:
    """A matrix ``[rows, columns]`` that is stored as numbers."""

    stretch: Stretch
    dtype: str
    rows: int
    columns: int
    casts: frozenset[str]
    #: Whether it is stored as ``[columns, rows]``.
    transposed: bool

    def __call__(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, float32 ``[stop - start, columns]``."""
        count = stop - start
        if self.transposed:
            first = range(start, start + self.rows * self.columns, self.rows)
            values = np.stack([self.stretch.numbers(place, count, self.dtype) for place in first], axis=1)
        else:
            values = self.stretch.numbers(start * self.columns, count * self.columns, self.dtype)
        return narrowed(values.reshape(count, self.columns), self.casts)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a node reads the codes of a matrix."""

    #: Of the matrix.
    shape: tuple[int, ...]
    #: Of a code.
    bits: int
    #: Codes for each scale.
    block: int
    #: Bytes of codes in a row.
    row_bytes: int
    #: Name of the initializer with the scales.
    scales: str
    #: What the scales are cast to.
    casts: frozenset[str]

    @property
    def blocks(self) -> int:
        """Scales of a row."""
        return -(-self.shape[1] // self.block)


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix that is stored as codes and scales of ``scales_dtype``."""

    scheme: Scheme
    codes: Stretch
    scales: Stretch
    scales_dtype: str

    def __call__(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, float32 ``[stop - start, columns]``."""
        scheme, count = self.scheme, stop - start
        columns, blocks = scheme.shape[1], scheme.blocks
        packed = self.codes.read(start * scheme.row_bytes, count * scheme.row_bytes)
        values = _TABLES[scheme.bits][packed].view(np.float32)
        values = values.reshape(count, scheme.row_bytes * 8 // scheme.bits)[:, :columns]
        scales = self.scales.numbers(start * blocks, count * blocks, self.scales_dtype)
        scales = narrowed(scales, scheme.casts).reshape(count, blocks)
        with np.errstate(over="ignore", invalid="ignore"):  # scales of a damaged file
            if columns % scheme.block:
                return values * np.repeat(scales, scheme.block, axis=1)[:, :columns]
            values = values.reshape(count, blocks, scheme.block)
            values *= scales[:, :, None]
        return values.reshape(count, columns)


def _table(bits: int) -> NDArray[np.generic]:
    """The signed codes in every byte, as float32 numbers side by side in one item, so that a look-up is one
    copy."""
    shifts = np.arange(0, 8, bits)
    codes = ((np.arange(256)[:, None] >> shifts) & (2**bits - 1)) - 2 ** (bits - 1)
    table: NDArray[np.generic] = codes.astype(np.float32).view({2: "c16", 4: "f8", 8: "f4"}[bits])
    return table.reshape(256)


_TABLES: Final = {bits: _table(bits) for bits in (2, 4, 8)}
