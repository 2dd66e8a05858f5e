"""Wall time, processor time and memory of the GGUF conversion beside `cp` and gguf-py's NumPy path.

Makes a lattice checkpoint in E2B's proportions (and one twice as large), warms the page cache, and runs
every command as a process of its own, in turn. Prints the median of the runs and ratios within this run.

    python benchmarks/gguf_conversion.py [--scale 0.45] [--larger 0.66] [--runs 5] [--directory DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator import generate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds, processor seconds and peak resident megabytes."""

    seconds: float
    #: Of the program and of the kernel for it: other work on the machine changes them little.
    processor: float
    megabytes: float


def measure(command: Sequence[str]) -> Run:
    """Run ``command`` to its end; peak memory is the kernel's account of that process alone."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def commands(checkpoint: Path, output: Path) -> dict[str, list[str]]:
    """What is compared, by name; every command leaves its result below ``output``."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    return {
        "cp": ["cp", "-r", str(checkpoint), str(output / "copy")],
        "qatconvert": [
            qatconvert,
            str(checkpoint),
            "-t",
            "gguf",
            "--no-validate",
            "-o",
            str(output / "ours"),
        ],
        "gguf-py, NumPy": [
            sys.executable,
            str(HERE / "gguf_numpy.py"),
            str(checkpoint),
            str(output / "numpy.gguf"),
        ],
    }


def clear(output: Path) -> None:
    """Remove what the last command left, so that every one writes to fresh files, and wait for the disk:
    nobody pays for another's pages."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    os.sync()


def compare(checkpoint: Path, output: Path, runs: int, names: Sequence[str]) -> dict[str, Run]:
    """Median of ``runs`` for each command, taken in turn after one round that is not counted."""
    found: dict[str, list[Run]] = {name: [] for name in names}
    for turn in range(runs + 1):
        for name in names:
            clear(output)
            run = measure(commands(checkpoint, output)[name])
            if turn:
                found[name].append(run)
    return {
        name: Run(
            statistics.median(run.seconds for run in done),
            statistics.median(run.processor for run in done),
            max(run.megabytes for run in done),
        )
        for name, done in found.items()
    }


def show(title: str, results: dict[str, Run], gigabytes: float) -> None:
    """One line per command, with its times as multiples of cp's."""
    print(f"\n{title}: {gigabytes:.2f} GB")
    print(f"{'':<18}{'seconds':>9}{'x cp':>7}{'CPU':>9}{'x cp':>7}{'GB/s':>7}{'peak MB':>9}")
    for name, run in results.items():
        wall, busy = run.seconds / results["cp"].seconds, run.processor / results["cp"].processor
        print(
            f"{name:<18}{run.seconds:>9.2f}{wall:>7.2f}{run.processor:>9.2f}{busy:>7.2f}"
            f"{gigabytes / run.seconds:>7.2f}{run.megabytes:>9.0f}"
        )


def make_checkpoint(directory: Path, scale: float, variant: str = "e2b") -> float:
    """Generate the checkpoint; returns its size in gigabytes. Reading it back warms the page cache."""
    generate(directory, variant, "--scheme", "max7", "--scale", str(scale))
    total = 0
    for file in directory.rglob("*"):
        with file.open("rb") as stream:
            while piece := stream.read(1 << 24):
                total += len(piece)
    return total / 1e9


def start_up(runs: int) -> None:
    """Time of --help, and proof that a conversion imports neither torch nor transformers."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    found = [measure([qatconvert, "--help"]).seconds for _ in range(runs)]
    print(f"\nqatconvert --help: {statistics.median(found):.3f} s")
    with tempfile.TemporaryDirectory() as directory:
        script = (
            "import sys; from converter.cli import group\n"
            "group(sys.argv[1:], standalone_mode=False)\n"
            "found = {'torch', 'transformers'} & set(sys.modules)\n"
            "print('imported by a conversion:', found or 'neither torch nor transformers')"
        )
        arguments = ["gemma4-demo", "--no-validate", "-o", str(Path(directory) / "out")]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.45, help="E2B's widths times this (default 0.45)")
    parser.add_argument("--larger", type=float, default=0.66, help="the second checkpoint's (default 0.66)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command (default 5)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        checkpoint, output = Path(work) / "checkpoint", Path(work) / "output"
        size = make_checkpoint(checkpoint, arguments.scale)
        show(
            "checkpoint",
            compare(checkpoint, output, arguments.runs, list(commands(checkpoint, output))),
            size,
        )
        shutil.rmtree(checkpoint)
        size = make_checkpoint(checkpoint, arguments.larger)
        show("the larger one", compare(checkpoint, output, 2, ["cp", "qatconvert"]), size)
    start_up(arguments.runs)


if __name__ == "__main__":
    main()
