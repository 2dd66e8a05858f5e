"""Speed of lattice recovery alone, by the way the scales were trained, on one core.

    python benchmarks/lattice_recovery.py

Prints GB/s of bfloat16 (best of the runs, processor time) and the share of blocks that are exact in float16.
"""

from __future__ import annotations

import time

import generator  # noqa: F401 (checkpoints is found by it)
import numpy as np

from converter.checkpoint.lattice import bf16_bits, recover
from converter.checkpoint.weight import EXACT

ROWS, COLUMNS, RUNS = 512, 1024, 30


def main() -> None:
    """Measure every scheme on one range of rows, as the conversion reads them."""
    from checkpoints.schemes import SCHEMES, random_rows

    print(f"{'scheme':<14}{'GB/s':>7}{'exact':>10}")
    for name, scheme in SCHEMES.items():
        bits = bf16_bits(random_rows(scheme, ROWS, COLUMNS, 0.02, (1,)))
        seconds = []
        for _ in range(RUNS):
            start = time.process_time()
            rows = recover(bits)
            seconds.append(time.process_time() - start)
        exact = np.count_nonzero(rows.status == EXACT) / rows.status.size
        print(f"{name:<14}{bits.nbytes / min(seconds) / 1e9:>7.2f}{exact:>10.2%}")


if __name__ == "__main__":
    main()
