"""Rows of weights as the bytes of GGML's types.

Q4_0, from ``ggml/src/ggml-common.h`` (``block_q4_0``): 32 values take 18 bytes, a float16 scale and
16 bytes of codes; byte ``i`` holds value ``i`` in its low and value ``i + 16`` in its high nibble,
each as code + 8, so that a value is ``scale * (nibble - 8)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import gguf
import numpy as np
from numba import njit
from numpy.typing import NDArray

from converter.lattice import bf16_bits
from converter.weight import LatticeRows

BLOCK: Final = 32
Q4_0_BYTES: Final = 18

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True)
def _pack_q4_0(codes, scales, out):  # type: ignore[no-untyped-def]
    """Flat codes (int8), one float16 bit pattern per 32 of them (uint16), and the flat bytes to fill."""
    for block in range(scales.size):
        source = block * 32
        place = block * 18
        out[place] = np.uint8(scales[block] & np.uint16(0xFF))
        out[place + 1] = np.uint8(scales[block] >> np.uint16(8))
        for i in range(16):
            low = np.uint8(codes[source + i] + np.int8(8))
            high = np.uint8(codes[source + 16 + i] + np.int8(8))
            out[place + 2 + i] = np.uint8(low | (high << np.uint8(4)))


def pack_q4_0(rows: LatticeRows) -> Bytes:
    """Q4_0 bytes, uint8 ``[rows, columns / 32 * 18]``, of 4-bit codes in blocks of 32.

    A scale that float16 does not hold is rounded to the nearest float16.
    """
    count, columns = rows.codes.shape
    scales = rows.scales.astype(np.float16).view(np.uint16)
    out = np.empty((count, columns // BLOCK * Q4_0_BYTES), np.uint8)
    _pack_q4_0(np.ascontiguousarray(rows.codes).reshape(-1), scales.reshape(-1), out.reshape(-1))
    return out


def _as_f32(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, np.float32).view(np.uint8)


def _as_f16(values: Floats) -> Bytes:
    return values.astype(np.float16).view(np.uint8)


def _as_bf16(values: Floats) -> Bytes:
    return bf16_bits(values).view(np.uint8)


def _as_q8_0(values: Floats) -> Bytes:
    packed: Bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    return packed


def _as_q4_0(values: Floats) -> Bytes:
    packed: Bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    return packed


#: How float rows ``[rows, columns]`` become bytes; Q8_0 and Q4_0 round as llama.cpp does.
FROM_FLOATS: Final[Mapping[str, Callable[[Floats], Bytes]]] = {
    "F32": _as_f32,
    "F16": _as_f16,
    "BF16": _as_bf16,
    "Q8_0": _as_q8_0,
    "Q4_0": _as_q4_0,
}


def row_bytes(format: str, columns: int) -> int:
    """Bytes of one row of ``columns`` values in the GGML type named ``format``."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {format}'s block of {block}")
    return int(columns // block * size)
