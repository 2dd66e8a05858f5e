"""Reading Q4_0 back: this project's kernel beside gguf-py's NumPy, in turn, in one thread.

python benchmarks/gguf_reading.py [--rows 65536] [--columns 1024] [--runs 7]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import gguf
import numpy as np

from targets.gguf.packing import unpack_q4_0


def seconds(function, data) -> float:
    """What one call takes."""
    begin = time.perf_counter()
    function(data)
    return time.perf_counter() - begin


def main() -> None:
    """Make random bytes, compare both results bit by bit, time both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1 << 16)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (given.rows, given.columns // 32 * 18), dtype=np.uint8)
    data.reshape(given.rows, -1, 18)[..., 1] &= 0x3F  # finite scales
    q4_0 = gguf.GGMLQuantizationType.Q4_0

    def library(data):
        return gguf.quants.dequantize(data, q4_0)

    assert np.array_equal(unpack_q4_0(data).view(np.uint32), library(data).view(np.uint32))
    times = [(seconds(unpack_q4_0, data), seconds(library, data)) for _ in range(given.runs)]
    own, theirs = (median(column) for column in zip(*times, strict=True))
    values = given.rows * given.columns
    print(f"{values / 1e6:.0f} M values, {given.runs} runs in turn, medians")
    for name, taken in (("unpack_q4_0", own), ("gguf-py", theirs)):
        print(f"{name:<12}{taken * 1e3:>9.1f} ms{values / taken / 1e9:>7.2f} G values/s")
    print(f"ratio {theirs / own:.1f}")


if __name__ == "__main__":
    main()
