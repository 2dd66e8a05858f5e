"""Rows of weights as the LiteRT artifact stores them: the stated rule, for the writer and for the proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.weight import EXACT, OFF_LATTICE, LatticeRows, Weight
from converter.errors import TargetError
from converter.system.compiled import compiled
from targets.litert.storage import CODED, LITERT, ROWS, is_small
from targets.litert.type_names import FLOAT16, INT4_SUMS
from targets.writing import NO_BLOCKS, Bytes, Statuses


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows in a type of ``targets.litert.storage``."""

    #: int8 codes, or numbers in the type's dtype, ``[rows, columns]``.
    values: NDArray[np.generic]
    #: float16 ``[rows, blocks]``, or float32 ``[rows, 1]`` of a type with one for each row; ``None`` for a
    #: type without them.
    scales: NDArray[np.float16] | NDArray[np.float32] | None
    #: float32 ``[rows, blocks]``; ``None`` for a type without them.
    sums: NDArray[np.float32] | None
    #: Those of the lattice's blocks, one behind the other.
    statuses: Statuses
    #: How many scales are right here and no bfloat16 numbers.
    narrowed: int
    #: Of a code; 0 for numbers.
    bits: int = 0

    def stretches(self) -> tuple[Bytes, ...]:
        """The bytes of codes or numbers, of scales and of sums, one behind the other. Scales of rows are not
        among them: these stand in the graph (``row_scales``)."""
        if self.scales is None:
            return (_bytes(self.values),)
        codes = pack_codes(self.values, self.bits)
        if self.scales.dtype != np.float16:
            return (codes,)
        parts = (codes, _bytes(self.scales))
        return parts if self.sums is None else (*parts, _bytes(self.sums))

    def floats(self) -> NDArray[np.float32]:
        """What the rows say, float32 ``[rows, columns]``."""
        if self.scales is None:
            return self.values.astype(np.float32)
        packed = pack_codes(self.values, self.bits)
        return dequantised(packed, self.scales, self.sums, self.values.shape[1], self.bits)


def dequantised(
    packed: Bytes,
    scales: NDArray[np.float16] | NDArray[np.float32],
    sums: NDArray[np.float32] | None,
    columns: int,
    bits: int,
) -> NDArray[np.float32]:
    """Codes as ``pack_codes`` gives them times scales, plus sums, both ``[rows, blocks]``: float32
    ``[rows, columns]``."""
    rows = len(scales)
    values = np.empty((rows, columns), np.float32)
    factors = np.ascontiguousarray(scales).astype(np.float32).reshape(-1)
    block = values.size // max(1, factors.size)
    unpack = {2: _unpack_2, 4: _unpack_4, 8: _unpack_8}[bits]
    unpack(np.ascontiguousarray(packed).reshape(-1), factors, block, values.reshape(-1))
    if sums is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # scales of a damaged file
            values.reshape(*sums.shape, block)[...] += sums[:, :, None]
    return values


@compiled()
def _unpack_2(packed, scales, block, values):  # type: ignore[no-untyped-def]
    quarter = block // 4
    for index in range(scales.size):
        scale = scales[index]
        for i in range(quarter):
            byte = np.int32(packed[index * quarter + i])
            place = index * block + 4 * i
            values[place] = scale * np.float32(((byte & 3) ^ 2) - 2)
            values[place + 1] = scale * np.float32(((byte >> 2 & 3) ^ 2) - 2)
            values[place + 2] = scale * np.float32(((byte >> 4 & 3) ^ 2) - 2)
            values[place + 3] = scale * np.float32(((byte >> 6) ^ 2) - 2)


@compiled()
def _unpack_8(packed, scales, block, values):  # type: ignore[no-untyped-def]
    for index in range(scales.size):
        scale = scales[index]
        for place in range(index * block, (index + 1) * block):
            values[place] = scale * np.float32(((np.int32(packed[place])) ^ 128) - 128)


@compiled()
def _unpack_4(packed, scales, block, values):  # type: ignore[no-untyped-def]
    half = block // 2
    for index in range(scales.size):
        scale = scales[index]
        for i in range(half):
            byte = np.int32(packed[index * half + i])
            place = index * block + 2 * i
            values[place] = scale * np.float32(((byte & 15) ^ 8) - 8)
            values[place + 1] = scale * np.float32(((byte >> 4) ^ 8) - 8)


def encode(weight: Weight, type_name: str, start: int, stop: int, *, multiplied: bool) -> StoredRows:
    """Rows ``start`` to ``stop`` of a weight in a type; ``multiplied`` says whether a matrix product uses
    it.

    Raises ``TargetError`` for values that the type or the runtime cannot hold, ``CheckpointError`` for a
    weight that cannot be read.
    """
    if type_name not in CODED:
        values = weight.floats(start, stop)
        LITERT.check_numbers(weight, type_name, values)
        return StoredRows(values.astype("<f2" if type_name == FLOAT16 else "<f4"), None, None, NO_BLOCKS, 0)
    rows = LITERT.codes(weight, type_name, start, stop)
    if rows is None:
        raise TargetError(f"litert: {weight.name}: has no codes that {type_name} holds")
    if type_name in ROWS:
        zero = rows.scales == 0
        codes = np.where(zero, np.int8(0), rows.codes) if zero.any() else rows.codes
        scales = _taken(weight.name, rows.scales, type_name, multiplied)
        statuses = np.where(rows.status == OFF_LATTICE, rows.status, np.uint8(EXACT)).reshape(-1)
        return StoredRows(codes, scales, None, statuses, 0, CODED[type_name].bits)
    return _coded(weight.name, rows, type_name, multiplied)


def row_scales(weight: Weight, type_name: str, *, multiplied: bool) -> NDArray[np.float32]:
    """The scales, float32 ``[rows]``, of all rows of a weight in a type with one for each; raises as
    ``encode``."""
    parts = [np.empty((0, 1), np.float32)]
    for start, stop in weight.row_ranges():
        if weight.scales is not None:
            found = weight.scales(start, stop)
        else:
            assert weight.codes is not None
            found = weight.codes(start, stop).scales
        if found.shape != (stop - start, 1):
            raise TargetError(f"litert: {weight.name}: has several scales in a row, {type_name} holds one")
        parts.append(_taken(weight.name, found, type_name, multiplied))
    return np.concatenate(parts).reshape(-1)


def _taken(name: str, scales: NDArray[np.float32], type_name: str, multiplied: bool) -> NDArray[np.float32]:
    """Scales of rows as the runtime takes them: rows of zeros have another scale."""
    if multiplied and (refused := scales[(scales < 0) | is_small(scales)]).size:
        raise TargetError(f"litert: {name}: has the scale {refused[0]}, which XNNPACK refuses in {type_name}")
    return np.where(scales == 0, np.float32(1), scales)


def _coded(name: str, rows: LatticeRows, type_name: str, multiplied: bool) -> StoredRows:
    """Codes, scales and sums as the runtime takes them."""
    exact, scales = rows.scales, rows.scales.astype(np.float16)
    codes = rows.codes.reshape(*scales.shape, CODED[type_name].block)
    sums = None
    negative = exact < 0
    if type_name == INT4_SUMS:
        # c = -8 becomes 7: unlike -c, -c - 1 always fits
        codes = np.where(negative[:, :, None], ~codes, codes)
        # of the rounded scale, with which the codes are multiplied
        sums = np.where(negative, -scales, 0).astype(np.float32)
        scales = np.abs(scales)
    elif multiplied and negative.any():
        raise TargetError(f"litert: {name}: negative scales, which XNNPACK refuses in INT4")
    # XNNPACK refuses a scale of 0; a block of zeros has any other
    zero = scales == 0
    if zero.any():
        codes = np.where(zero[:, :, None], np.int8(0), codes)
        sums = None if sums is None else np.where(zero, np.float32(0), sums)
        scales = np.where(zero, np.float16(1), scales)
    kept = scales.astype(np.float32)
    lost = np.count_nonzero((bf16_floats(bf16_bits(kept)) != kept) & (rows.status == EXACT))
    packed = codes.reshape(rows.codes.shape)
    bits = CODED[type_name].bits
    return StoredRows(packed, scales, sums, rows.status.reshape(-1), int(lost), bits)


def side_by_side(weight: Weight) -> Weight:
    """A weight of experts, ``[experts, rows, columns]``, as ``[rows, experts * columns]``."""
    experts, rows, columns = weight.shape

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return np.concatenate(
            [weight.floats(one * rows + start, one * rows + stop) for one in range(experts)], axis=1
        )

    def codes(start: int, stop: int) -> LatticeRows:
        assert weight.codes is not None
        parts = [weight.codes(one * rows + start, one * rows + stop) for one in range(experts)]
        return LatticeRows(
            np.concatenate([part.codes for part in parts], axis=1),
            np.concatenate([part.scales for part in parts], axis=1),
            np.concatenate([part.status for part in parts], axis=1),
        )

    shape = (rows, experts * columns)
    return Weight(weight.name, weight.source, shape, weight.stored, floats, weight.lattice, codes)


def pack_codes(codes: NDArray[np.generic], bits: int) -> Bytes:
    """int8 codes of 2, 4 or 8 bits, the first of a byte in its lowest bits, in two's complement: uint8
    ``[rows * columns * bits / 8]``."""
    flat = np.ascontiguousarray(codes, np.int8).reshape(-1)
    if bits == 8:
        return flat.view(np.uint8)
    packed: Bytes = np.empty(flat.size * bits // 8, np.uint8)
    if bits == 4:
        _pack_4(flat.view("<u2"), packed)
    else:
        _pack_2(flat.view("<u4"), packed)
    return packed


@compiled()
def _pack_2(fours, packed):  # type: ignore[no-untyped-def]
    for i in range(packed.size):
        four = fours[i] & np.uint32(0x03030303)
        four |= four >> np.uint32(6)
        packed[i] = np.uint8((four | four >> np.uint32(12)) & np.uint32(0xFF))


@compiled()
def _pack_4(pairs, packed):  # type: ignore[no-untyped-def]
    for i in range(packed.size):
        pair = pairs[i]
        packed[i] = np.uint8((pair & np.uint16(0x0F)) | ((pair >> np.uint16(4)) & np.uint16(0xF0)))


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
