"""Recovery of the trained 4-bit lattice from dequantised bfloat16 weights.

A quantization-aware-trained checkpoint stores ``w = bf16(scale * code)`` with one scale for 32
consecutive input values and codes in ``[-8, 7]``. For each block this module finds codes and a
scale that give every ``w`` back bit for bit, or says that there are none.

Method. If the value of largest magnitude has code ``k``, the scale is within a bfloat16 rounding of
``magnitude / |k|``. That fixes every other code, since one code step is far larger than the rounding. There
are eight possible ``|k|``. A bfloat16 scale is then the nearest bfloat16 of that quotient, so one
multiplication per value proves or refutes it. Where that fails, each value bounds the scale to the interval
whose products round to it. The intersection of the 32 intervals is searched for a value that float16 holds,
else float32.

Canonical form. ``(scale, codes)`` and ``(2 * scale, codes / 2)`` are the same numbers. The representation
whose codes have no common divisor is unique, whatever order the eight candidates are tried in. It is the one
with a positive scale wherever a positive scale is possible: a negative one remains only where a positive
scale would need code +8. A negative zero counts as zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE, LatticeRows
from converter.system.compiled import compiled, kept_code

#: Consecutive input values that share a scale, in every Gemma QAT checkpoint and in GGML's Q4_0.
BLOCK = 32

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to the nearest even integer, which
# then stands in the low bits of the sum; unlike a call to rint it vectorises everywhere.
_ROUND = np.float32(12582912.0)
_ROUND_BITS = np.int32(0x4B400000)
# How far quotient and code may differ: the roundings to bfloat16 of the value and of the largest
# value, 2**-8 each, for codes up to 8, and slack for the float32 arithmetic.
_RESIDUAL = np.float32(8 * 2 * 2.0**-8 * 1.02)
_BATCH = 64
_F16_MIN_NORMAL = np.float32(2.0**-14)
_F16_MAX = np.float32(65504.0)


@compiled(inline="always")
def _float(bits):  # type: ignore[no-untyped-def]
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@compiled(inline="always")
def _round_bf16(value):  # type: ignore[no-untyped-def]
    """Float32 rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.float32(value).view(np.int32)
    bits = np.int32(bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1)))
    return np.int32(bits & np.int32(-65536)).view(np.float32)


@compiled(inline="always")
def _neighbour(rounded, value):  # type: ignore[no-untyped-def]
    """The bfloat16 on the other side of ``value``, whose nearest is ``rounded``."""
    bits = np.float32(rounded).view(np.int32)
    step = np.int32(0x10000) if abs(value) > abs(rounded) else np.int32(-0x10000)
    return np.int32(bits + step).view(np.float32)


@compiled(inline="always")
def _round_f16(value):  # type: ignore[no-untyped-def]
    """Float32 within float16's range rounded to the nearest float16, as float32."""
    magnitude = abs(value)
    if magnitude < _F16_MIN_NORMAL:
        step = np.float32(2.0**-24)
        return np.float32(np.rint(value / step) * step)
    bits = np.float32(value).view(np.int32)
    bits = np.int32(bits + np.int32(0xFFF) + ((bits >> np.int32(13)) & np.int32(1)))
    return np.int32(bits & np.int32(-8192)).view(np.float32)


@compiled(inline="always")
def _fits_f16(value):  # type: ignore[no-untyped-def]
    return abs(value) <= _F16_MAX and _round_f16(value) == value


@compiled(inline="always")
def _divisible(mask):  # type: ignore[no-untyped-def]
    """Whether the codes whose magnitudes are the set bits of ``mask`` have a common divisor above 1."""
    if mask & 2:
        return False
    return (
        mask & ~np.int32(0b101010101) == 0
        or mask & ~np.int32(0b001001001) == 0
        or mask & ~np.int32(0b000100001) == 0
        or mask & ~np.int32(0b010000001) == 0
    )


@compiled(inline="always")
def _try(bits, block, inverse, scale):  # type: ignore[no-untyped-def]
    """Whether the codes of one scale reproduce a block, whether all its values lie within a rounding of that
    lattice, and the set of code magnitudes. Codes that do not fit four bits do neither.

    Writes nothing: a loop that only reads needs no check that its arrays do not overlap, without which it
    would not be vectorised.
    """
    wrong = np.int32(0)
    away = np.int32(0)
    mask = np.int32(0)
    high = np.int32(-8)
    for i in range(BLOCK):
        value = _float(bits[block, i])
        quotient = np.float32(value * inverse)
        rounded = np.float32(quotient + _ROUND)
        whole = np.float32(rounded - _ROUND)
        code = np.int32(rounded.view(np.int32) - _ROUND_BITS)
        wrong |= np.int32(_round_bf16(np.float32(scale * whole)) != value)
        away |= np.int32(abs(np.float32(quotient - whole)) > _RESIDUAL)
        mask |= np.int32(1) << (abs(code) & np.int32(15))
        high = max(high, code)
    return wrong == 0 and high <= 7, away == 0 and high <= 7, mask


@compiled()
def _write_codes(bits, inverse, codes):  # type: ignore[no-untyped-def]
    """Write flat ``codes`` of flat ``bits`` for one inverse scale per block.

    One-dimensional on purpose: in this form the compiler sees that no index is negative and vectorises.
    """
    for block in range(inverse.size):
        factor = inverse[block]
        for i in range(BLOCK):
            rounded = np.float32(np.float32(_float(bits[block * BLOCK + i]) * factor) + _ROUND)
            codes[block * BLOCK + i] = np.int8(np.int32(rounded.view(np.int32) - _ROUND_BITS))


@compiled()
def _near(bits, block, inverse):  # type: ignore[no-untyped-def]
    """Whether every value of a block lies within a rounding of the lattice."""
    away = np.int32(0)
    for i in range(BLOCK):
        quotient = np.float32(_float(bits[block, i]) * inverse)
        whole = np.float32(np.float32(quotient + _ROUND) - _ROUND)
        away |= np.int32(abs(np.float32(quotient - whole)) > _RESIDUAL)
    return away == 0


@compiled()
def _codes_of(bits, block, inverse, codes):  # type: ignore[no-untyped-def]
    """Write the codes of a block for one scale; returns the largest."""
    high = np.int32(-8)
    for i in range(BLOCK):
        rounded = np.float32(np.float32(_float(bits[block, i]) * inverse) + _ROUND)
        code = np.int32(rounded.view(np.int32) - _ROUND_BITS)
        high = max(high, code)
        codes[block, i] = np.int8(code)
    return high


@compiled()
def _reproduces(bits, block, codes, scale):  # type: ignore[no-untyped-def]
    wrong = np.int32(0)
    for i in range(BLOCK):
        product = np.float32(scale * np.float32(codes[block, i]))
        wrong |= np.int32(_round_bf16(product) != _float(bits[block, i]))
    return wrong == 0


@compiled()
def _interval(bits, block, codes):  # type: ignore[no-untyped-def]
    """Magnitudes of the scales whose products round to the block's values, a hair too wide. The ends of a
    rounding interval belong to it or not by ties to even, so what is chosen is verified.

    Positive floats are compared by their bit patterns, which order alike and vectorise.
    """
    low, high = np.int32(0), np.int32(0x7F800000)
    for i in range(BLOCK):
        code = abs(np.int32(codes[block, i]))
        divisor = np.float32(max(code, np.int32(1)))
        magnitude = np.int32(bits[block, i]) & np.int32(0x7FFF)
        middle = _float(magnitude)
        below = np.float32((_float(max(magnitude - np.int32(1), np.int32(0))) + middle) * np.float32(0.5))
        above = np.float32((_float(magnitude + np.int32(1)) + middle) * np.float32(0.5))
        least = np.float32(below / divisor).view(np.int32)
        most = np.float32(above / divisor).view(np.int32)
        low = max(low, least)
        high = min(high, most if code > 0 else np.int32(0x7F800000))
    return np.int32(low).view(np.float32) * np.float32(1 - 2.0**-22), np.int32(high).view(
        np.float32
    ) * np.float32(1 + 2.0**-22)


@compiled()
def _search(bits, block, codes, sign):  # type: ignore[no-untyped-def]
    """The scale of given codes and its status: a bfloat16 that float16 holds, a float16, a float32."""
    low, high = _interval(bits, block, codes)
    if not low <= high < np.float32(np.inf):
        return np.float32(0.0), OFF_LATTICE
    middle = np.float32((low + high) * np.float32(0.5))
    nearest = _round_bf16(middle)
    if low <= nearest <= high and _fits_f16(nearest) and _reproduces(bits, block, codes, sign * nearest):
        return sign * nearest, EXACT
    step = max(np.float32(middle * np.float32(2.0**-11)), np.float32(2.0**-24))
    # Outwards from the middle: an end of the interval may be excluded, its inside never is.
    for away in range(2 * 9):
        side = np.float32((away + 1) // 2 * (1 - 2 * (away % 2)))
        candidate = _round_f16(np.float32(middle + side * step))
        if candidate <= _F16_MAX and low <= candidate <= high:
            if _reproduces(bits, block, codes, sign * candidate):
                return sign * candidate, EXACT
        elif away > 2:
            break
    if _reproduces(bits, block, codes, sign * middle):
        return sign * middle, NEEDS_F32_SCALE
    return np.float32(0.0), OFF_LATTICE


@compiled(inline="always")
def _extremum(bits, block):  # type: ignore[no-untyped-def]
    """Bit patterns of the largest positive value and of the largest negative magnitude."""
    positive = np.int32(0)
    negative = np.int32(0)
    for i in range(BLOCK):
        pattern = np.int32(bits[block, i])
        positive = max(positive, pattern if pattern < 0x8000 else np.int32(0))
        negative = max(negative, pattern - np.int32(0x8000))
    return positive, negative


@compiled(inline="always")
def _sign(code, positive, negative):  # type: ignore[no-untyped-def]
    """Sign of the scale: -1 only for code 8 of a positive extremum, which is then code -8."""
    return np.float32(-1.0) if code == 8 and positive > negative else np.float32(1.0)


@compiled()
def _settle(bits, block, codes):  # type: ignore[no-untyped-def]
    """Codes, scale and status of a block that has no exact primitive representation with a bfloat16 scale.
    Every candidate is tried, smallest code first. An exact one goes before one that needs a float32 scale."""
    positive, negative = _extremum(bits, block)
    largest = _float(max(positive, negative))
    found, status, best = np.float32(0.0), OFF_LATTICE, np.float32(0.0)
    for candidate in range(1, 9):
        sign = _sign(candidate, positive, negative)
        inverse = np.float32(np.float32(sign * np.float32(candidate)) / largest)
        if not _near(bits, block, inverse):
            continue
        high = _codes_of(bits, block, inverse, codes)
        if high > 7:
            continue
        scale, grade = _search(bits, block, codes, sign)
        if grade > status:
            found, status, best = scale, grade, inverse
    if status == OFF_LATTICE:
        return _nearest(bits, block, positive, negative, codes), status
    _codes_of(bits, block, best, codes)
    return found, status


@compiled()
def _nearest(bits, block, positive, negative, codes):  # type: ignore[no-untyped-def]
    """Codes and scale of least squared error among 16 scales, for a block on no lattice."""
    largest = _float(max(positive, negative))
    direction = 1.0 if negative >= positive else -1.0
    least, chosen = np.inf, np.float32(0.0)
    for candidate in range(16):
        scale = _round_f16(np.float32(direction * largest / (8.0 - candidate * 0.125)))
        if scale == 0 or abs(scale) > _F16_MAX:
            continue
        error = 0.0
        for i in range(BLOCK):
            value = _float(bits[block, i])
            code = min(7.0, max(-8.0, np.rint(value / scale)))
            error += (value - code * scale) ** 2
        if error < least:
            least, chosen = error, scale
    for i in range(BLOCK):
        quotient = np.rint(_float(bits[block, i]) / chosen) if chosen != 0 else 0.0
        codes[block, i] = np.int8(min(7.0, max(-8.0, quotient)))
    return chosen


@compiled()
def _quotients(candidate, count, largest, eighth, inverse, scale, other):  # type: ignore[no-untyped-def]
    """For ``count`` blocks at once: the inverse of ``largest / candidate``, the bfloat16 nearest to the
    quotient, and the one on its other side. The last is the scale where rounding moved the largest value
    across."""
    for index in range(count):
        code = np.float32(candidate) * (eighth[index] if candidate == 8 else np.float32(1.0))
        inverse[index] = np.float32(code / largest[index])
        quotient = np.float32(largest[index] / code)
        scale[index] = _round_bf16(quotient)
        other[index] = _neighbour(scale[index], quotient)


@compiled()
def _attempt(bits, block, candidate, inverse, nearest, other, codes):  # type: ignore[no-untyped-def]
    """The scale with which the codes of one candidate are an exact and primitive representation of a
    block, or 0."""
    scale = nearest
    exact, near, mask = _try(bits, block, inverse, scale)
    if near and not exact:
        scale = other
        exact, near, mask = _try(bits, block, inverse, scale)
    if not near or (candidate > 1 and _divisible(mask)):
        return np.float32(0.0)
    if exact and _fits_f16(scale):
        return scale
    _codes_of(bits, block, inverse, codes)
    scale, grade = _search(bits, block, codes, np.float32(1.0) if inverse > 0 else np.float32(-1.0))
    return scale if grade == EXACT else np.float32(0.0)


@compiled()
def _recover(bits, codes, scales, status):  # type: ignore[no-untyped-def]
    """All blocks of ``bits`` (``[blocks, 32]``). Returns the index of the first block with a value that is
    not finite, or -1.

    Works on a batch of blocks at a time, one candidate after the other: blocks do not wait for one
    another's divisions, and those are vectorised.
    """
    flat_bits, flat_codes = bits.reshape(-1), codes.reshape(-1)
    place = np.empty(_BATCH, np.int64)
    largest, eighth, inverse, nearest, other, chosen = (
        np.empty(_BATCH, np.float32),
        np.empty(_BATCH, np.float32),
        np.empty(_BATCH, np.float32),
        np.empty(_BATCH, np.float32),
        np.empty(_BATCH, np.float32),
        np.empty(_BATCH, np.float32),
    )
    hint = 7
    for first in range(0, scales.size, _BATCH):
        stop = min(first + _BATCH, scales.size)
        waiting = 0
        for block in range(first, stop):
            positive, negative = _extremum(bits, block)
            top = max(positive, negative)
            if top >= 0x7F80:
                return block
            place[waiting] = block
            largest[waiting] = _float(top)
            eighth[waiting] = _sign(8, positive, negative)
            chosen[block - first] = scales[block] = np.float32(0.0)
            status[block] = EXACT
            waiting += 1 if top else 0
        best, most = hint, 0
        for turn in range(9):
            # The last batch's most frequent code first, then the others: blocks of a tensor are alike.
            candidate = hint if turn == 0 else 9 - turn
            if waiting == 0 or (turn > 0 and candidate == hint):
                continue
            _quotients(candidate, waiting, largest, eighth, inverse, nearest, other)
            left = 0
            for index in range(waiting):
                block = place[index]
                scale = _attempt(bits, block, candidate, inverse[index], nearest[index], other[index], codes)
                if scale != 0:
                    scales[block] = scale
                    chosen[block - first] = inverse[index]
                else:
                    place[left] = block
                    largest[left] = largest[index]
                    eighth[left] = eighth[index]
                    left += 1
            if waiting - left > most:
                best, most = candidate, waiting - left
            waiting = left
        hint = best
        part = slice(first * BLOCK, stop * BLOCK)
        _write_codes(flat_bits[part], chosen[: stop - first], flat_codes[part])
        for index in range(waiting):
            block = place[index]
            scales[block], status[block] = _settle(bits, block, codes)
    return -1


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bfloat16 bit patterns of finite float32 ``values``, rounded to nearest, ties to even; same shape."""
    wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16).reshape(values.shape)


def bf16_floats(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Float32 values, exactly, of bfloat16 bit patterns; same shape."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def recover(bits: NDArray[np.uint16]) -> LatticeRows:
    """Codes, scales and exactness of every block of 32 values.

    ``bits``: uint16 ``[rows, columns]``, bfloat16 bit patterns, ``columns`` a multiple of 32. Returns
    codes int8 ``[rows, columns]``, scales float32 and status uint8 ``[rows, columns / 32]``. Releases
    the GIL while it runs. Raises ``ValueError`` if the columns do not divide into blocks or a value
    is infinite or not a number.
    """
    rows, columns = bits.shape
    if columns % BLOCK:
        raise ValueError(f"{columns} columns are not a multiple of {BLOCK}")
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // BLOCK), np.float32)
    status = np.empty((rows, columns // BLOCK), np.uint8)
    blocks = np.ascontiguousarray(bits).reshape(-1, BLOCK)
    bad = _recover(blocks, codes.reshape(-1, BLOCK), scales.reshape(-1), status.reshape(-1))
    if bad >= 0:
        row, block = divmod(int(bad), columns // BLOCK)
        raise ValueError(f"row {row} has a value that is not finite in block {block}")
    return LatticeRows(codes, scales, status)


def machine_code() -> tuple[Path | None, bool]:
    """Where the compiled search is kept between processes (``kept_code``), and whether it is there by now."""
    return kept_code(_recover)
