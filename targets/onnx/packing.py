"""Rows of weights as the bytes of ONNX initializers.

``MatMulNBits`` and ``GatherBlockQuantized`` (onnxruntime, ``docs/ContribOperators.md``) take codes without a
sign: with 4 bits two to a byte, the first in the low nibble, each as code + 8; with 8 bits as code + 128.
Without a zero point that middle code stands for zero, so a value is ``scale * code``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits
from converter.system.compiled import compiled
from targets.float16 import half_bits
from targets.onnx.storage import BLOCK

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

#: The smallest normal float32.
_SMALLEST: Final = np.float32(2.0**-126)


@compiled()
def _pack_nibbles(codes, out):  # type: ignore[no-untyped-def]
    """Two codes at a time, little-endian: one uint16 of ``codes`` becomes one byte of ``out``.

    The low four bits of a two's complement code in -8..7 become code + 8 when their highest is flipped.
    """
    for i in range(out.size):
        pair = codes[i]
        out[i] = np.uint8(
            ((pair & np.uint16(0x0F)) | ((pair >> np.uint16(4)) & np.uint16(0xF0))) ^ np.uint16(0x88)
        )


@compiled()
def _to_half(bits, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        out[i] = np.uint16(half_bits(bits[i]))


def pack_codes(codes: Codes, bits: int) -> Bytes:
    """Bytes of signed ``codes`` (int8 ``[rows, columns]``, of 4 or 8 bits): uint8
    ``[rows, columns * bits / 8]``. ``columns`` is even."""
    codes = np.ascontiguousarray(codes)
    if bits == 8:
        return codes.view(np.uint8) ^ np.uint8(0x80)
    rows, columns = codes.shape
    out = np.empty((rows, columns // 2), np.uint8)
    _pack_nibbles(codes.reshape(-1).view("<u2"), out.reshape(-1))
    return out


def pack_scales(scales: Floats, format: str) -> Bytes:
    """Bytes of float32 ``scales`` as ``FLOAT`` or ``FLOAT16`` (rounded to the nearest)."""
    return FROM_FLOATS[format](scales)


def _as_float(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


def _as_float16(values: Floats) -> Bytes:
    out = np.empty(values.shape, "<u2")
    _to_half(np.ascontiguousarray(values, "<f4").reshape(-1).view("<i4"), out.reshape(-1))
    return out.view(np.uint8)


def _as_bfloat16(values: Floats) -> Bytes:
    return bf16_bits(values).view(np.uint8)


#: How float rows ``[rows, columns]`` become bytes ``[rows, bytes]``.
FROM_FLOATS: Final[Mapping[str, Callable[[Floats], Bytes]]] = {
    "FLOAT": _as_float,
    "FLOAT16": _as_float16,
    "BFLOAT16": _as_bfloat16,
}


def round_rows(values: Floats, bits: int) -> tuple[Codes, Floats]:
    """Codes and scales of float32 ``values`` (``[rows, columns]``, whole blocks of 32) on no lattice: int8
    ``[rows, columns]`` and float32 ``[rows, columns / 32]``, each scale a float16 number.

    The rule is GGML's (``ggml/src/ggml-quants.c``), so that both targets lose the same: with 8 bits
    (``quantize_row_q8_0_ref``) the largest magnitude has code 127, with 4 (``quantize_row_q4_0_ref``) the
    extremum has -8, and codes come of the scale before it is rounded to float16. Its magnitude is within
    float16's range if the caller saw to it.
    """
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // BLOCK), np.float32)
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    rounded = _round_to_8 if bits == 8 else _round_to_4
    rounded(flat, codes.reshape(-1), scales.reshape(-1))
    return codes, _as_float16(scales).view("<f2").astype(np.float32)


@compiled(inline="always")
def _extremum(patterns, first):  # type: ignore[no-untyped-def]
    """Largest magnitudes of a block's positive and negative values, as bit patterns, which order as they do.

    Flat arrays and no negative index: in this form the compiler vectorises these loops.
    """
    positive = np.int32(0)
    negative = np.int32(0)
    for i in range(BLOCK):
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
def _round_to_8(values, codes, scales):  # type: ignore[no-untyped-def]
    patterns = values.view(np.int32)
    for block in range(scales.size):
        first = block * BLOCK
        positive, negative = _extremum(patterns, first)
        scale = np.float32(np.int32(max(positive, negative)).view(np.float32) / np.float32(127.0))
        scales[block] = scale
        inverse = _inverse(scale)
        for i in range(BLOCK):
            quotient = np.float32(values[first + i] * inverse)
            magnitude = abs(quotient)
            whole = np.int32(magnitude)
            whole += np.int32(
                np.float32(magnitude - np.float32(whole)) >= np.float32(0.5)
            )  # ties go outwards
            codes[first + i] = np.int8(-whole if quotient < 0 else whole)


@compiled()
def _round_to_4(values, codes, scales):  # type: ignore[no-untyped-def]
    patterns = values.view(np.int32)
    for block in range(scales.size):
        first = block * BLOCK
        positive, negative = _extremum(patterns, first)
        below = negative > positive
        if negative == positive:  # of two extremes the first counts
            for i in range(BLOCK):
                if (patterns[first + i] & np.int32(0x7FFFFFFF)) == positive:
                    below = patterns[first + i] < 0
                    break
        extremum = np.int32(max(positive, negative)).view(np.float32)
        scale = np.float32((-extremum if below else extremum) / np.float32(-8.0))
        scales[block] = scale
        inverse = _inverse(scale)
        for i in range(BLOCK):
            whole = np.int32(np.float32(np.float32(values[first + i] * inverse) + np.float32(8.5)))
            codes[first + i] = np.int8(min(whole, np.int32(15)) - np.int32(8))
