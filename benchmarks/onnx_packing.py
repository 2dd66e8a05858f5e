"""Speed of the ONNX target's packing on one core, beside the same in NumPy (and gguf-py, for rounding).

    python benchmarks/onnx_packing.py

Prints millions of values per second of processor time, best of the runs, for one range of rows as the
conversion takes them; and of reading the packed rows back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gguf
import numpy as np

from targets.onnx.dequantisation import Codes, Scheme, Stretch
from targets.onnx.packing import FROM_FLOATS, pack_codes
from targets.onnx.storage import Storage

ROWS, COLUMNS, RUNS = 512, 1024, 30


def speed(function: Callable[[], object]) -> float:
    """Millions of values per second; the first call compiles."""
    seconds = []
    for _ in range(RUNS + 1):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return ROWS * COLUMNS / min(seconds[1:]) / 1e6


def numpy_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes to a byte, the first in the low nibble."""
    unsigned = (codes + 8).astype(np.uint8)
    return unsigned[:, ::2] | (unsigned[:, 1::2] << 4)


def main() -> None:
    """Measure packing, rounding and reading."""
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)
    values = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    ggml = gguf.GGMLQuantizationType
    int4, int8 = Storage().held.coded
    scales = np.ones((ROWS, COLUMNS // 32), np.float32)
    scheme = Scheme((ROWS, COLUMNS), 4, 32, COLUMNS // 2, "", frozenset())
    rows = Codes(
        scheme,
        Stretch("", 0, pack_codes(codes, 4).tobytes()),
        Stretch("", 0, scales.tobytes()),
        "FLOAT",
    )
    table: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
        "4-bit codes": (lambda: pack_codes(codes, 4), lambda: numpy_nibbles(codes)),
        "8-bit codes": (
            lambda: pack_codes(codes, 8),
            lambda: (codes.astype(np.int16) + 128).astype(np.uint8),
        ),
        "float16": (lambda: FROM_FLOATS["FLOAT16"](values), lambda: values.astype(np.float16)),
        "rounding to 4 bits": (
            lambda: int4.rounded(values),
            lambda: gguf.quants.quantize(values, ggml.Q4_0),
        ),
        "rounding to 8 bits": (
            lambda: int8.rounded(values),
            lambda: gguf.quants.quantize(values, ggml.Q8_0),
        ),
        "reading 4 bits": (lambda: rows(0, ROWS), None),
    }
    print(f"{'':<20}{'ours':>9}{'NumPy':>9}{'ratio':>8}")
    for name, (ours, theirs) in table.items():
        fast = speed(ours)
        slow = speed(theirs) if theirs else None
        print(f"{name:<20}{fast:>9.0f}" + (f"{slow:>9.0f}{fast / slow:>8.1f}" if slow else ""))


if __name__ == "__main__":
    main()
