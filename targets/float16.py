"""Float16, in which most types keep the scales of blocks: conversion, and what it cannot hold."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.system.compiled import compiled

#: The largest finite float16.
LARGEST: Final = 65504.0
#: The smallest normal one. Below it steps stay as large, so that fewer bits of a number are held.
SMALLEST: Final = 2.0**-14


@compiled(inline="always")
def half_bits(bits):  # type: ignore[no-untyped-def]
    """The float16 nearest to a float32, ties to even, both as bit patterns in an int32. NumPy's conversion
    is right as well, and took two thirds of the packing time."""
    sign = (bits >> np.int32(16)) & np.int32(0x8000)
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    if magnitude < np.int32(0x38800000):  # below float16's normal range: whole multiples of 2**-24
        return sign | np.int32(np.rint(magnitude.view(np.float32) * np.float32(2.0**24)))
    if magnitude > np.int32(0x7F800000):
        return sign | np.int32(0x7E00)
    rounded = (
        min(magnitude, np.int32(0x47800000)) + np.int32(0xFFF) + ((magnitude >> np.int32(13)) & np.int32(1))
    )
    return sign | min((rounded >> np.int32(13)) - np.int32(112 << 10), np.int32(0x7C00))


def coarse(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Those of ``values`` below float16's normal numbers that it does not hold, and what it makes of them.
    All steps there are of 2**-24, so that an error is 2**-25 at most."""
    below = values[np.abs(values) < SMALLEST]
    made = below.astype(np.float16).astype(np.float32)
    return below[made != below], made[made != below]


def out_of_range(values: NDArray[np.float32], limit: float = LARGEST) -> bool:
    """Whether the magnitude of one of ``values`` is above ``limit``."""
    return limit < np.inf and bool(max(values.max(initial=0), -values.min(initial=0)) > limit)
