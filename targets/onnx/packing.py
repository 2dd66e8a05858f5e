"""Rows of weights as the bytes of ONNX initializers.

``MatMulNBits`` and ``GatherBlockQuantized`` (onnxruntime, ``docs/ContribOperators.md``) take codes without a
sign. With 2 bits they are four to a byte, the first in the lowest bits, each as code + 2. With 4 bits they
are two to a byte, the first in the low nibble, each as code + 8. With 8 bits each is code + 128. Without a
zero point that middle code stands for zero, so a value is ``scale * code``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits
from converter.system.compiled import compiled
from targets.float16 import half_bits

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Floats = NDArray[np.float32]


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
def _pack_pairs(codes, out):  # type: ignore[no-untyped-def]
    """Four codes at a time, little-endian: one uint32 of ``codes`` becomes one byte of ``out``.

    The low two bits of a two's complement code in -2..1 become code + 2 when their highest is flipped.
    """
    for i in range(out.size):
        four = codes[i] & np.uint32(0x03030303)
        four |= four >> np.uint32(6)
        out[i] = np.uint8(((four & np.uint32(0x0F)) | ((four >> np.uint32(12)) & np.uint32(0xF0))) ^ 0xAA)


@compiled()
def _to_half(bits, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        out[i] = np.uint16(half_bits(bits[i]))


#: How codes of so many bits, as many at a time as a byte has, become bytes.
_PACK: Final = {2: _pack_pairs, 4: _pack_nibbles}


def pack_codes(codes: Codes, bits: int) -> Bytes:
    """Bytes of signed ``codes`` (int8 ``[rows, columns]``, of 2, 4 or 8 bits): uint8
    ``[rows, columns * bits / 8]``, which is a whole number."""
    codes = np.ascontiguousarray(codes)
    if bits == 8:
        return codes.view(np.uint8) ^ np.uint8(0x80)
    each = 8 // bits
    rows, columns = codes.shape
    out = np.empty((rows, columns // each), np.uint8)
    _PACK[bits](codes.reshape(-1).view(f"<u{each}"), out.reshape(-1))
    return out


def pack_scales(scales: Floats, type_name: str) -> Bytes:
    """Bytes of float32 ``scales`` as ``FLOAT`` or ``FLOAT16`` (rounded to the nearest)."""
    return FROM_FLOATS[type_name](scales)


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
