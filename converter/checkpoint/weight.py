"""The currency between checkpoint readers and targets: one named weight, read by row ranges.

A weight of shape ``(..., columns)`` is seen as ``rows x columns`` with all leading dimensions flattened. So
an expert tensor and a matrix are read in the same way, and nobody ever needs a whole large tensor in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Blocks of a lattice weight are told apart by how exactly they reproduce the checkpoint.
OFF_LATTICE, NEEDS_F32_SCALE, EXACT = 0, 1, 2

#: Bits of a number by the checkpoint's dtype.
_NUMBER_BITS = {"F32": 32, "BF16": 16, "F16": 16}
_SAMPLED_VALUES = 1 << 16
_SAMPLED_RANGES = 16


@dataclass(frozen=True, slots=True)
class Lattice:
    """How the codes of a weight are cut."""

    #: Bits per code: 2, 4 or 8. Codes are signed, in ``[-2**(bits-1), 2**(bits-1) - 1]``.
    bits: int
    #: Input values per scale; 0 stands for one scale per row (a whole output channel).
    block: int

    def blocks(self, columns: int) -> int:
        """Number of scales in a row of ``columns`` values."""
        return 1 if self.block == 0 else columns // self.block


@dataclass(frozen=True, slots=True)
class LatticeRows:
    """Rows of a lattice weight: ``value = scale * code``."""

    #: int8 ``[rows, columns]``.
    codes: NDArray[np.int8]
    #: float32 ``[rows, blocks]``, exact in float16 wherever ``status`` is ``EXACT``.
    scales: NDArray[np.float32]
    #: uint8 ``[rows, blocks]``. ``EXACT``: the scale fits float16, and every value is reproduced bit for bit.
    #: ``NEEDS_F32_SCALE``: the same, but only with a float32 scale. ``OFF_LATTICE``: codes and scale are the
    #: nearest found, not exact. Where the checkpoint stores numbers, a value is the product rounded to
    #: bfloat16. Where it stores codes and scales, a value is the product itself.
    status: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales by which training rounded what a module takes and gives, as the checkpoint stores them.

    Each is float32 ``[1]`` for the whole tensor or ``[channels]``, ``None`` where there is none.
    """

    #: Of a module's input and output.
    input: NDArray[np.float32] | None = None
    output: NDArray[np.float32] | None = None
    #: Of the caches that an attention fills.
    key: NDArray[np.float32] | None = None
    value: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """A named weight, either float or on a lattice."""

    #: The canonical name: ``layers.0.mlp.down_proj.weight``.
    name: str
    #: The name in the checkpoint.
    source: str
    shape: tuple[int, ...]
    #: The checkpoint's dtype: ``BF16``.
    stored: str
    #: ``floats(start, stop)`` gives float32 ``[stop - start, columns]``, exactly the checkpoint's values.
    floats: Callable[[int, int], NDArray[np.float32]]
    #: ``None`` for a weight that lies on no lattice.
    lattice: Lattice | None = None
    #: ``codes(start, stop)`` gives the rows of a weight that lies on a lattice.
    codes: Callable[[int, int], LatticeRows] | None = None
    #: ``scales(start, stop)`` gives their scales alone where the checkpoint stores them, float32
    #: ``[stop - start, blocks]``: these are few, and can be asked for before codes are read.
    scales: Callable[[int, int], NDArray[np.float32]] | None = None
    #: Training coded the weight, by the scheme that the checkpoint was trained with. Then it should lie on a
    #: lattice.
    coded: bool = False
    #: It decides which experts a token reaches.
    router: bool = False

    @property
    def columns(self) -> int:
        """Length of the last dimension, along which blocks run (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_packed(self) -> bool:
        """Whether the checkpoint stores codes and scales. A value is then their product in float32, and else
        the number that is stored."""
        return self.lattice is not None and self.stored not in _NUMBER_BITS

    @property
    def stored_bits(self) -> int:
        """Bits of a value in the checkpoint: of a number, or of a code where codes are stored."""
        known = _NUMBER_BITS.get(self.stored)
        return known or (self.lattice.bits if self.lattice else 8)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the values take in the checkpoint, without scales where codes are stored."""
        return self.bytes_of(self.size)

    def bytes_of(self, values: int) -> int:
        """Bytes that so many of the values take in the checkpoint."""
        return -(-values * self.stored_bits // 8)

    def row_ranges(self, values: int = 1 << 19) -> Iterator[tuple[int, int]]:
        """Consecutive ``(start, stop)`` row ranges of about ``values`` values each, at least one row."""
        step = max(1, values // max(1, self.columns))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def sampled_ranges(rows: int, columns: int) -> list[tuple[int, int]]:
    """Row ranges spread evenly over a matrix, together about 65536 values or the whole matrix."""
    if rows * columns <= _SAMPLED_VALUES:
        return [(0, rows)] if rows else []
    height = max(1, _SAMPLED_VALUES // (_SAMPLED_RANGES * columns))
    ranges = min(_SAMPLED_RANGES, max(2, _SAMPLED_VALUES // (height * columns)), rows // height)
    starts = {(rows - height) * index // max(1, ranges - 1) for index in range(ranges)}
    return [(start, start + height) for start in sorted(starts)]
