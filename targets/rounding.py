"""Values on no lattice rounded to codes and scales, by GGML's rule (``ggml/src/ggml-quants.c``).

With 8 bits (``quantize_row_q8_0_ref``) the largest magnitude of a block has the highest code, 127. With fewer
(``quantize_row_q4_0_ref``, ``quantize_row_q5_0_ref``) the value of the largest magnitude has the lowest code,
-8 of 4 bits, so that its scale has a sign.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.system.compiled import compiled

#: The smallest normal float32.
_SMALLEST: Final = np.float32(2.0**-126)
#: Bits whose scales are positive in GGML's types.
_SYMMETRIC: Final = 8

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]


def rounded(values: Floats, bits: int, block: int, *, negative: bool = True) -> tuple[Codes, Floats]:
    """Codes, int8 ``[rows, columns]`` of 2 to 8 ``bits``, and scales, float32 ``[rows, blocks]``, of float32
    ``values`` ``[rows, columns]``.

    ``block`` is the number of values that share a scale, 0 for the whole row. Where scales may not be
    ``negative``, the largest magnitude has the highest code with any number of bits. A block whose scale is
    below float32's normal range has codes of 0. Raises ``ValueError`` for rows that are no whole blocks.
    """
    rows, columns = values.shape
    size = block or columns
    if columns % size:
        raise ValueError(f"{columns} columns are not a multiple of {size}")
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // size), np.float32)
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    kernel = _round_to_extremum if _to_extremum(bits, negative) else _round_to_magnitude
    kernel(flat, size, np.int32(2 ** (bits - 1)), codes.reshape(-1), scales.reshape(-1))
    return codes, scales


def largest_code(bits: int, *, negative: bool = True) -> int:
    """Magnitude of the code that the largest magnitude of a block has; ``negative`` as for ``rounded``."""
    half: int = 2 ** (bits - 1)
    return half if _to_extremum(bits, negative) else half - 1


def _to_extremum(bits: int, negative: bool) -> bool:
    return negative and bits < _SYMMETRIC


@compiled(inline="always")
def _extremum(patterns, first, block):  # type: ignore[no-untyped-def]
    """Largest magnitudes of a block's positive and negative values, as bit patterns, which order as they do.

    Flat arrays and no negative index: in this form the compiler vectorises these loops.
    """
    positive = np.int32(0)
    negative = np.int32(0)
    for i in range(block):
        pattern = patterns[first + i]
        magnitude = pattern & np.int32(0x7FFFFFFF)
        positive = max(positive, pattern)
        negative = max(negative, magnitude if pattern < 0 else np.int32(0))
    return positive, negative


@compiled(inline="always")
def _inverse(scale):  # type: ignore[no-untyped-def]
    """1 / scale; 0 where that is no number, for a scale that float16 takes for 0 as well."""
    return np.float32(np.float32(1.0) / scale) if abs(scale) >= _SMALLEST else np.float32(0.0)


@compiled()
def _round_to_magnitude(values, block, half, codes, scales):  # type: ignore[no-untyped-def]
    patterns = values.view(np.int32)
    highest = np.float32(half - np.int32(1))
    for index in range(scales.size):
        first = index * block
        positive, negative = _extremum(patterns, first, block)
        scale = np.float32(np.int32(max(positive, negative)).view(np.float32) / highest)
        scales[index] = scale
        inverse = _inverse(scale)
        for i in range(block):
            quotient = np.float32(values[first + i] * inverse)
            magnitude = abs(quotient)
            whole = np.int32(magnitude)
            whole += np.int32(
                np.float32(magnitude - np.float32(whole)) >= np.float32(0.5)
            )  # ties go outwards
            codes[first + i] = np.int8(-whole if quotient < 0 else whole)


@compiled()
def _round_to_extremum(values, block, half, codes, scales):  # type: ignore[no-untyped-def]
    patterns = values.view(np.int32)
    highest = np.int32(half + half - np.int32(1))
    middle = np.float32(np.float32(half) + np.float32(0.5))
    for index in range(scales.size):
        first = index * block
        positive, negative = _extremum(patterns, first, block)
        below = negative > positive
        if negative == positive:  # of two extremes the first counts
            for i in range(block):
                if (patterns[first + i] & np.int32(0x7FFFFFFF)) == positive:
                    below = patterns[first + i] < 0
                    break
        extremum = np.int32(max(positive, negative)).view(np.float32)
        scale = np.float32((-extremum if below else extremum) / np.float32(-half))
        scales[index] = scale
        inverse = _inverse(scale)
        for i in range(block):
            whole = np.int32(np.float32(np.float32(values[first + i] * inverse) + middle))
            codes[first + i] = np.int8(min(whole, highest) - half)
