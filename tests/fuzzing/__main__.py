"""Fuzzing by hand; see the package."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import fuzzing
from fuzzing import trial

_BATCH = 200


def main() -> int:
    """Run cases until the time is over; exit status 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description="Fuzz the readers of a format.")
    parser.add_argument(
        "--format", choices=fuzzing.NAMES, action="append", help="several may be given; all by default"
    )
    parser.add_argument("--seconds", type=float, default=60, help="for each format")
    parser.add_argument("--cases", type=int, help="stop after so many cases of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzzing-failures"), help="directory for failing files"
    )
    options = parser.parse_args()
    failed = sum(_fuzz(name, options) for name in options.format or fuzzing.NAMES)
    return 1 if failed else 0


def _fuzz(name: str, options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        fuzzing.find(name).write(directory)
        begin, index, read, failed = time.monotonic(), options.first, 0, 0
        while time.monotonic() < begin + options.seconds and index - options.first != options.cases:
            left = _BATCH if options.cases is None else options.first + options.cases - index
            outcome = trial.run(name, directory, seed=options.seed, first=index, cases=min(_BATCH, left))
            index, read, failed = index + outcome.cases, read + outcome.read, failed + len(outcome.failures)
            for number, problem in outcome.failures.items():
                kept = trial.keep(name, directory, options.seed, number, options.keep)
                print(f"{name} seed {options.seed} case {number}: {problem} ({kept})", flush=True)
        cases, seconds = index - options.first, time.monotonic() - begin
        print(
            f"{name}: {cases} cases, {cases / seconds:.0f} a second, {read} read, {failed} failed", flush=True
        )
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
