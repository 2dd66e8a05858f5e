"""What a conversion costs at E2B's full size, with and without its proof, for each target.

    python benchmarks/full_size.py [--targets gguf onnx litert] [--checkpoint DIR] [--directory DIR]

Makes a checkpoint of E2B's text part (35 layers, 4.63 billion parameters, a vocabulary of 262144; random
weights on a lattice, two shards), unless one is given, and runs each conversion by the command line, in a
home and a temporary directory of its own, so that nothing is cached. Memory is that of all processes at once,
with the pages of the files that they map, a file in several of them once; beside it, what of that is no
file's page and cannot be dropped. Disk is the most that the output, the cache and temporary files took at one
time.

Needs Linux, and some 30 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generator import generate
from litert_memory import Tree, parameters, sample

from converter.system.processors import processors

TARGETS = ("gguf", "onnx", "litert")
#: Options of the two stages of each target.
STAGES = {"conversion alone": ["--no-validate"], "with proof": []}
#: Seconds between two samples.
INTERVAL = 1.0
GB = 1e9


@dataclass
class Cost:
    """What a command took, in seconds and bytes."""

    seconds: float = 0.0
    memory: int = 0
    private: int = 0
    disk: int = 0
    status: int = 0


def occupied(directory: Path) -> int:
    """Bytes of disk that the files below a directory take; files may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += Path(root, name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def run(command: Sequence[str], work: Path) -> Cost:
    """Run a command that writes below ``work`` alone to its end."""
    home, scratch = work / "home", work / "scratch"
    scratch.mkdir(parents=True)
    environment = {**os.environ, "QATCONVERT_HOME": str(home), "TMPDIR": str(scratch)}
    cost, start = Cost(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            tree = Tree()
            sample(process.pid, tree)
            cost.memory = max(cost.memory, tree.peak)
            private = tree.peak - tree.parts.get("pages of files, once", 0)
            cost.private = max(cost.private, private)
            cost.disk = max(cost.disk, occupied(work))
            time.sleep(INTERVAL)
    cost.seconds, cost.status = time.perf_counter() - start, process.returncode
    return cost


def failed(output: Path, target: str) -> list[str]:
    """Gates of the report that did not pass, each with its value and its limit."""
    report = json.loads((output / "report.json").read_text("utf-8"))
    gates = report["targets"][target]["gates"]
    return [f"{one['name']} {one['value']} ({one['limit']})" for one in gates if not one["passed"]]


def main() -> None:
    """Make the checkpoint, measure, print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--checkpoint", type=Path, help="measure this one instead of making one")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    given = parser.parse_args()
    header = ["target", "", "wall, s", "memory, GB", "of it not files', GB", "disk, GB", "gates"]
    table = [header, ["---"] * len(header)]
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        checkpoint, work = given.checkpoint, Path(name, "work")
        if checkpoint is None:
            checkpoint = Path(name, "checkpoint")
            generate(checkpoint, "text", "--scale", "1", "--shards", "2")
        for target in given.targets:
            for stage, options in STAGES.items():
                output = work / "output"
                command = [qatconvert, "convert", str(checkpoint), "--target", target]
                cost = run([*command, "--output", str(output), *options], work)
                if cost.status not in (0, 3):
                    sys.exit(f"{' '.join(command)} ended with status {cost.status}")
                judged = "" if options else ", ".join(failed(output, target)) or "passed"
                sizes = [f"{size / GB:.1f}" for size in (cost.memory, cost.private, cost.disk)]
                table.append([target, stage, f"{cost.seconds:.0f}", *sizes, judged])
                print(table[-1], file=sys.stderr)
                shutil.rmtree(work)
        print(f"{parameters(checkpoint) / 1e9:.2f} billion parameters, {processors()} cores\n")
    for line in table:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
