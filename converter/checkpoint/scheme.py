"""What lattice a weight lies on: exactness of all its blocks and the way its scales were trained."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE, Weight
from converter.system.compiled import compiled
from converter.system.processors import processors


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts over the blocks of one weight, and the scheme that its scales follow."""

    weight: str
    blocks: int
    exact: int
    needs_f32_scale: int
    off_lattice: int
    negative_scales: int
    #: Of 4-bit codes: ``max/7``: largest magnitude over 7. ``max/8``: positive scales, codes -8 to 7.
    #: ``extremum/-8``: the extremum always has code -8. Codes of other bits have their own largest ones in
    #: these names: ``max/127``, ``max/128`` and ``extremum/-128`` of 8 bits, ``max/1`` of 2. ``learned``:
    #: anything else. Each of these has ``, f32 scales`` behind it where float16 cannot hold them all.
    #: ``zero``: every value is zero. ``few codes``: some are not, but no block has enough code magnitudes to
    #: tell (three, or one of 2-bit codes).
    scheme: str

    @property
    def exact_fraction(self) -> float:
        """Share of blocks that an artifact with float16 scales reproduces bit for bit."""
        return self.exact / self.blocks if self.blocks else 1.0


@compiled()
def _extremes(codes, scales, block, least, found):  # type: ignore[no-untyped-def]
    """Count blocks by sign of the scale and largest code magnitude, into int64 ``found[2, 129]``.

    Blocks with fewer than ``least`` code magnitudes other than 0, at most three, are left out.
    """
    for index in range(scales.size):
        largest = np.int32(0)
        for i in range(index * block, (index + 1) * block):
            largest = max(largest, abs(np.int32(codes[i])))  # of an int8, -128 has no positive counterpart
        magnitudes = 0
        first = second = np.int32(0)
        for i in range(index * block, (index + 1) * block):
            code = abs(np.int32(codes[i]))
            if code and code != first and code != second:
                magnitudes += 1
                if magnitudes >= least:
                    break
                first, second = code, first
        if magnitudes >= least:
            found[1 if scales[index] < 0 else 0, largest] += 1


def _no_counts() -> NDArray[np.int64]:
    """No blocks yet by sign of the scale and largest magnitude, which is 128 at most of int8 codes."""
    return np.zeros((2, 129), np.int64)


def _scheme(found: NDArray[np.int64], bits: int, needs_f32_scale: int, zero: bool) -> str:
    by_code = found.sum(axis=0)
    total = int(by_code.sum())
    if not total:
        return "zero" if zero else "few codes"
    lowest = 1 << (bits - 1)  # the magnitude of the code that has no positive counterpart
    highest = lowest - 1
    if by_code[highest] == total:
        name = f"max/{highest}"
    elif by_code[lowest] == total and found[1, lowest]:
        name = f"extremum/-{lowest}"
    elif by_code[highest] + by_code[lowest] == total and not found[1].any():
        name = f"max/{lowest}"
    else:
        name = "learned"
    return f"{name}, f32 scales" if needs_f32_scale else name


def survey(weight: Weight, progress: Callable[[int], None] = lambda rows: None) -> Survey:
    """Read every block of a weight on a lattice, on all cores.

    ``progress`` gets the number of values read since the last call. Raises ``ValueError`` for a weight
    that is not on a lattice, ``CheckpointError`` if it cannot be read.
    """
    if weight.lattice is None or weight.codes is None:
        raise ValueError(f"{weight.name} lies on no lattice")
    read, block = weight.codes, weight.lattice.block or weight.columns
    bits = weight.lattice.bits
    # fewer magnitudes say little, as codes could be multiples of others; 2-bit ones of max/1 have but one
    least = min(3, (1 << (bits - 1)) - 1)

    def count(rows: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], int, bool]:
        part = read(*rows)
        found = _no_counts()
        _extremes(part.codes.reshape(-1), part.scales.reshape(-1), block, least, found)
        status = np.bincount(part.status.reshape(-1), minlength=3)
        progress(part.codes.size)
        return status, found, int((part.scales < 0).sum()), not part.scales.any()

    status, found = np.zeros(3, np.int64), _no_counts()
    negative, zero = 0, True
    with ThreadPoolExecutor(processors()) as pool:
        for part_status, part_found, part_negative, part_zero in pool.map(count, weight.row_ranges()):
            status += part_status
            found += part_found
            negative += part_negative
            zero &= part_zero
    return Survey(
        weight.name,
        int(status.sum()),
        int(status[EXACT]),
        int(status[NEEDS_F32_SCALE]),
        int(status[OFF_LATTICE]),
        negative,
        _scheme(found, bits, int(status[NEEDS_F32_SCALE]), zero),
    )
