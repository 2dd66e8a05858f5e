"""Random weights on the lattices that quantization-aware training may leave behind, block by block.

Every scheme rounds Gaussian weights; they differ in the scale of a block of 32 values and in the codes
allowed. A few blocks are made hard on purpose: all zero, one value only, three distinct codes, one sign
throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats

BLOCK = 32
Floats = NDArray[np.float32]
#: About one block in this many is of each hard kind.
HARD_SHARE = 64
#: Scales stay in float16's normal range.
SMALLEST_SCALE = np.float32(2.0**-13)


@dataclass(frozen=True)
class Scheme:
    """How blocks are rounded: ``scales(blocks, random)`` gives float32 ``[n, 1]``, before they are rounded to
    bfloat16 unless ``wide``; codes are clipped to ``lowest..7``."""

    scales: Callable[[Floats, np.random.Generator], Floats]
    lowest: int
    wide: bool = False


def _largest(blocks: Floats) -> Floats:
    largest: Floats = np.abs(blocks).max(axis=1, keepdims=True)
    return largest


def _max7(blocks: Floats, random: np.random.Generator) -> Floats:
    return _largest(blocks) / np.float32(7)


def _max8(blocks: Floats, random: np.random.Generator) -> Floats:
    return _largest(blocks) / np.float32(8)


def _extremum8(blocks: Floats, random: np.random.Generator) -> Floats:
    """Q4_0's own: the value of largest magnitude gets code -8, so the scale may be negative."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scales: Floats = np.where(-low >= high, low, high) / np.float32(-8)
    return scales


def _learned(blocks: Floats, random: np.random.Generator) -> Floats:
    """A scale of its own for every block, which clips the largest values or leaves room above them."""
    free = random.uniform(0.75, 1.25, (len(blocks), 1)).astype(np.float32)
    return _largest(blocks) * free / np.float32(7.5)


#: ``latent`` is on no lattice at all.
SCHEMES: Mapping[str, Scheme | None] = {
    "max7": Scheme(_max7, -7),
    "max8": Scheme(_max8, -8),
    "extremum8": Scheme(_extremum8, -8),
    "learned": Scheme(_learned, -8),
    "max7-f32": Scheme(_max7, -7, wide=True),
    "learned-f32": Scheme(_learned, -8, wide=True),
    "latent": None,
}


def random_rows(scheme: Scheme | None, rows: int, columns: int, std: float, seed: tuple[int, ...]) -> Floats:
    """Rows of a matrix as float32 ``[rows, columns]`` before the last rounding to bfloat16.

    ``columns`` is a multiple of 32 unless ``scheme`` is ``None``; ``std`` is the standard deviation before
    rounding to the lattice; the same ``seed`` gives the same rows.
    """
    random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
    values = random.standard_normal((rows, columns), dtype=np.float32)
    values *= np.float32(std)
    if scheme is None:
        return values
    blocks = values.reshape(-1, BLOCK)
    _harden(blocks, random)
    scales = scheme.scales(blocks, random)
    if not scheme.wide:
        scales = bf16_floats(bf16_bits(scales))
    scales = np.copysign(np.maximum(np.abs(scales), SMALLEST_SCALE), scales)
    np.divide(blocks, scales, out=blocks)
    np.rint(blocks, out=blocks)
    np.clip(blocks, scheme.lowest, 7, out=blocks)
    np.multiply(blocks, scales, out=blocks)
    blocks += np.float32(0)  # no negative zeros
    return values


def _harden(blocks: Floats, random: np.random.Generator) -> None:
    """Make a few of ``blocks`` (float32 ``[n, 32]``, changed in place) hard to recover."""
    kinds = random.integers(0, HARD_SHARE, len(blocks), dtype=np.int16)
    blocks[kinds == 0] = 0
    lone = np.flatnonzero(kinds == 1)
    kept = blocks[lone, 5].copy()
    blocks[lone] = 0
    blocks[lone, 5] = kept
    few = np.flatnonzero(kinds == 2)
    level = np.abs(blocks[few, :1])
    blocks[few] = np.sign(blocks[few]) * level * (np.abs(blocks[few]) > level)
    blocks[kinds == 3] = np.abs(blocks[kinds == 3])
    blocks[kinds == 4] = -np.abs(blocks[kinds == 4])
