"""Peak memory of a LiteRT export, in bytes per parameter, over the process and its children together.

Makes a lattice checkpoint in E2B's proportions (and one three times as large) and converts each without
validation, while the resident memory of all its processes is added up, that of a library in several of them
once, whatever other programs share it.

    python benchmarks/litert_memory.py [--scale 0.27] [--larger 0.47] [--directory DIR] [--checkpoint DIR]

Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from generator import generate

#: Seconds between two samples, of which each takes some 20 ms.
INTERVAL = 0.25
MIB = 1 << 20


@dataclass
class Tree:
    """What a command's processes held: the largest sum of all, and each one's own peak, in bytes."""

    peak: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def children(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from children(int(child))


def fields(path: Path) -> dict[str, int]:
    """Bytes by name in a file of the kernel's."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines if line[-1] == "kB"}


def name_of(pid: int, root: int) -> str:
    """What a process is: the command itself, or the module that Python runs."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    modules = [arguments[at + 1].decode() for at, one in enumerate(arguments[:-1]) if one == b"-m"]
    return "qatconvert" if pid == root else modules[0] if modules else Path(arguments[0].decode()).name


def sample(root: int, tree: Tree) -> None:
    """Take the present sizes into account; processes may end meanwhile."""
    own: dict[str, int] = {}
    shared: dict[str, int] = {}
    try:
        for pid in children(root):
            name, status = name_of(pid, root), fields(Path(f"/proc/{pid}/status"))
            own[name] = own.get(name, 0) + status["RssAnon"] + status["RssShmem"]
            tree.largest[name] = max(tree.largest.get(name, 0), status["VmHWM"])
            for file, size in mapped(pid).items():
                shared[file] = max(shared.get(file, 0), size)
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return
    parts = {**own, "pages of files, once": sum(shared.values())}
    if sum(parts.values()) > tree.peak:
        tree.peak, tree.parts = sum(parts.values()), parts


def mapped(pid: int) -> dict[str, int]:
    """Resident bytes of each file that a process maps (libraries for the most part)."""
    found: dict[str, int] = {}
    file = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping: addresses, rights, offset, device, inode, path
            file = words[5] if len(words) > 5 and words[5].startswith("/") else ""
        elif words[0] == "Rss:" and file:
            found[file] = found.get(file, 0) + (int(words[1]) << 10)
        elif words[0] == "Anonymous:" and file:  # copies of its own are counted above
            found[file] -= int(words[1]) << 10
    return found


def measure(command: Sequence[str]) -> Tree:
    """Run ``command`` to its end."""
    start, tree = time.perf_counter(), Tree()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            sample(process.pid, tree)
            time.sleep(INTERVAL)
    tree.seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return tree


def parameters(checkpoint: Path) -> int:
    """Values of all tensors in a checkpoint of bfloat16."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) // 2


def convert(checkpoint: Path, output: Path) -> tuple[Tree, int]:
    """Peaks of a conversion and bytes of the bundle."""
    qatconvert = str(Path(sys.executable).with_name("qatconvert"))
    options = ["--target", "litert", "--no-validate", "--output", str(output)]
    tree = measure([qatconvert, "convert", str(checkpoint), *options])
    return tree, sum(file.stat().st_size for file in output.rglob("*.litertlm"))


def show(checkpoint: Path, tree: Tree, size: int) -> None:
    """The figures of one conversion."""
    count = parameters(checkpoint)
    layers = json.loads((checkpoint / "config.json").read_text())
    layers = layers.get("text_config", layers)["num_hidden_layers"]
    print(f"\n{count / 1e6:.1f} M parameters, {layers} layers, {tree.seconds:.0f} s")
    print(f"{'':<34}{'MiB':>8}{'bytes per parameter':>21}")
    print(f"{'all processes at once':<34}{tree.peak / MIB:>8.0f}{tree.peak / count:>21.2f}")
    for name, part in sorted(tree.parts.items()):
        print(f"{'  of them ' + name:<34}{part / MIB:>8.0f}{part / count:>21.2f}")
    for name, part in sorted(tree.largest.items()):
        print(f"{'peak of ' + name:<34}{part / MIB:>8.0f}{part / count:>21.2f}")
    print(f"{'bundle':<34}{size / MIB:>8.0f}{size / count:>21.2f}")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=0.27, help="E2B's widths times this (default 0.27)")
    parser.add_argument("--larger", type=float, default=0.47, help="the second checkpoint's (default 0.47)")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--checkpoint", type=Path, help="measure this one instead of making two")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as work:
        output, made = Path(work) / "output", Path(work) / "checkpoint"
        if arguments.checkpoint is not None:
            show(arguments.checkpoint, *convert(arguments.checkpoint, output))
            return
        for scale in (arguments.scale, arguments.larger):
            generate(made, "text", "--scale", str(scale))
            show(made, *convert(made, output))
            shutil.rmtree(made)
            shutil.rmtree(output)


if __name__ == "__main__":
    main()
