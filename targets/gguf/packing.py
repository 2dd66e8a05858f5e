"""Rows of weights as the bytes of GGML's types.

Q4_0, from ``ggml/src/ggml-common.h`` (``block_q4_0``): 32 values take 18 bytes, a float16 scale and 16 bytes
of codes. Byte ``i`` holds value ``i`` in its low and value ``i + 16`` in its high nibble, each as code + 8.
So a value is ``scale * (nibble - 8)``.

TQ2_0 (``block_tq2_0``): 256 values take 66 bytes, 64 of codes and then a float16 scale. Each half of the
values has 32 of the bytes: byte ``i`` holds values ``i``, ``i + 32``, ``i + 64`` and ``i + 96`` of its half,
the first in the lowest bits. Two bits ``q`` are the value ``scale * (q - 1)``, from -1 to 2 times the scale.
Codes of two bits go from -2 to 1, so they are stored as ``1 - code`` with the scale negated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits
from converter.checkpoint.weight import LatticeRows
from converter.system.compiled import compiled
from targets.float16 import half_bits
from targets.gguf.storage import Q4_0, Q8_0, TQ2_0

Q4_0_BYTES: Final = sum(Q4_0.row_parts(Q4_0.block))
TQ2_0_BYTES: Final = sum(TQ2_0.row_parts(TQ2_0.block))
#: What compiled code takes as constants.
_BLOCK: Final = Q4_0.block
_HALF: Final = TQ2_0.block // 2
_QUARTER: Final = _HALF // 4
_WORDS: Final = TQ2_0.block // 8
_PARTS: Final = TQ2_0_BYTES // 2

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


_NIBBLES: Final = np.uint64(0x0F0F0F0F0F0F0F0F)
_EIGHTS: Final = np.uint64(0x8888888888888888)


@compiled()
def _pack_q4_0(codes, scales, out):  # type: ignore[no-untyped-def]
    """Eight codes at a time, little-endian: a block has 4 uint64 of ``codes``, one int32 of ``scales`` (the
    bits of a float32) and 9 uint16 of ``out``.

    The low four bits of a two's complement code in -8..7 become code + 8 when their highest is flipped.
    """
    for block in range(scales.size):
        source = block * 4
        place = block * 9
        out[place] = np.uint16(half_bits(scales[block]))
        for half in range(2):
            low = codes[source + half] & _NIBBLES
            high = codes[source + half + 2] & _NIBBLES
            word = (low | (high << np.uint64(4))) ^ _EIGHTS
            for part in range(4):
                out[place + 1 + half * 4 + part] = np.uint16(word >> np.uint64(16 * part))


def pack_q4_0(rows: LatticeRows) -> Bytes:
    """Q4_0 bytes, uint8 ``[rows, columns / 32 * 18]``, of 4-bit codes in blocks of 32.

    A scale that float16 does not hold is rounded to the nearest float16.
    """
    count, columns = rows.codes.shape
    codes = np.ascontiguousarray(rows.codes).reshape(-1).view("<u8")
    scales = np.ascontiguousarray(rows.scales, "<f4").reshape(-1).view("<i4")
    out = np.empty((count, columns // Q4_0.block * Q4_0_BYTES // 2), "<u2")
    _pack_q4_0(codes, scales, out.reshape(-1))
    return out.view(np.uint8)


def pack_q8_0(rows: LatticeRows) -> Bytes:
    """Q8_0 bytes, uint8 ``[rows, columns / 32 * 34]``, of codes in blocks of 32: a float16 scale, rounded to
    the nearest where float16 does not hold it, and a byte for each code (``block_q8_0``)."""
    count, columns = rows.codes.shape
    with np.errstate(over="ignore"):
        scales = rows.scales.astype("<f2").reshape(count, -1, 1).view(np.uint8)
    codes = np.ascontiguousarray(rows.codes).view(np.uint8).reshape(count, columns // Q8_0.block, Q8_0.block)
    return np.concatenate([scales, codes], axis=2).reshape(count, -1)


_PAIRS: Final = np.uint64(0x0303030303030303)
_ONES: Final = np.uint64(0x5555555555555555)


@compiled()
def _pack_tq2_0(codes, scales, out):  # type: ignore[no-untyped-def]
    """Eight codes at a time: a block has 32 uint64 of ``codes``, one int32 of ``scales`` (the bits of a
    float32) and 33 uint16 of ``out``.

    The low two bits of a two's complement code in -2..1 become 1 - code when the lowest is flipped.
    """
    for block in range(scales.size):
        source = block * _WORDS
        place = block * _PARTS
        for word in range(8):
            first = source + (word >> 2) * 16 + (word & 3)
            packed = codes[first] & _PAIRS
            packed |= (codes[first + 4] & _PAIRS) << np.uint64(2)
            packed |= (codes[first + 8] & _PAIRS) << np.uint64(4)
            packed |= (codes[first + 12] & _PAIRS) << np.uint64(6)
            packed ^= _ONES
            for part in range(4):
                out[place + word * 4 + part] = np.uint16(packed >> np.uint64(16 * part))
        out[place + _PARTS - 1] = np.uint16(half_bits(scales[block])) ^ np.uint16(0x8000)


def pack_tq2_0(rows: LatticeRows) -> Bytes:
    """TQ2_0 bytes, uint8 ``[rows, columns / 256 * 66]``, of 2-bit codes in blocks of 256.

    A scale that float16 does not hold is rounded to the nearest float16.
    """
    count, columns = rows.codes.shape
    codes = np.ascontiguousarray(rows.codes).reshape(-1).view("<u8")
    scales = np.ascontiguousarray(rows.scales, "<f4").reshape(-1).view("<i4")
    out = np.empty((count, columns // TQ2_0.block * TQ2_0_BYTES // 2), "<u2")
    _pack_tq2_0(codes, scales, out.reshape(-1))
    return out.view(np.uint8)


@compiled()
def _unpack_tq2_0(blocks, scales, out):  # type: ignore[no-untyped-def]
    for block in range(scales.size):
        scale = scales[block]
        for half in range(2):
            first = half * _HALF
            for index in range(_QUARTER):
                byte = np.int32(blocks[block, half * _QUARTER + index])
                place = first + index
                out[block, place] = scale * np.float32((byte & 3) - 1)
                out[block, place + _QUARTER] = scale * np.float32((byte >> 2 & 3) - 1)
                out[block, place + 2 * _QUARTER] = scale * np.float32((byte >> 4 & 3) - 1)
                out[block, place + 3 * _QUARTER] = scale * np.float32((byte >> 6) - 1)


def unpack_tq2_0(data: Bytes) -> Floats:
    """Values, float32 ``[rows, columns]``, of TQ2_0 bytes, uint8 ``[rows, columns / 256 * 66]``: to the bit
    those of gguf-py."""
    blocks = np.ascontiguousarray(data).reshape(-1, TQ2_0_BYTES)
    scales = np.ascontiguousarray(blocks[:, -2:]).view("<f2").astype(np.float32).reshape(-1)
    out = np.empty((len(blocks), TQ2_0.block), np.float32)
    _unpack_tq2_0(blocks, scales, out)
    return out.reshape(len(data), -1)


@compiled()
def _unpack_q4_0(blocks, scales, out):  # type: ignore[no-untyped-def]
    for block in range(scales.size):
        scale = scales[block]
        for index in range(_BLOCK // 2):
            byte = np.int32(blocks[block, 2 + index])
            out[block, index] = scale * np.float32((byte & 15) - 8)
            out[block, index + _BLOCK // 2] = scale * np.float32((byte >> 4) - 8)


def unpack_q4_0(data: Bytes) -> Floats:
    """Values, float32 ``[rows, columns]``, of Q4_0 bytes, uint8 ``[rows, columns / 32 * 18]``: to the bit
    those of gguf-py, which takes four times as long (``benchmarks/gguf_reading.py``)."""
    blocks = np.ascontiguousarray(data).reshape(-1, Q4_0_BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32).reshape(-1)
    out = np.empty((len(blocks), Q4_0.block), np.float32)
    _unpack_q4_0(blocks, scales, out)
    return out.reshape(len(data), -1)


def _as_f32(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, np.float32).view(np.uint8)


def _as_f16(values: Floats) -> Bytes:
    return values.astype(np.float16).view(np.uint8)


def _as_bf16(values: Floats) -> Bytes:
    return bf16_bits(values).view(np.uint8)


#: How codes and scales become bytes.
FROM_CODES: Final[Mapping[str, Callable[[LatticeRows], Bytes]]] = {
    "TQ2_0": pack_tq2_0,
    "Q4_0": pack_q4_0,
    "Q8_0": pack_q8_0,
}
#: How bytes become float32 rows, where gguf-py would take long.
TO_FLOATS: Final[Mapping[str, Callable[[Bytes], Floats]]] = {"TQ2_0": unpack_tq2_0, "Q4_0": unpack_q4_0}
#: How float rows ``[rows, columns]`` become bytes.
FROM_FLOATS: Final[Mapping[str, Callable[[Floats], Bytes]]] = {
    "F32": _as_f32,
    "F16": _as_f16,
    "BF16": _as_bf16,
}
