"""What the package and each of its extras take on the disk, as a Markdown table.

    python benchmarks/installed_sizes.py WHEEL

Each is installed into an environment of its own, with the versions of ``converter/constraints.txt``. PyTorch
is whichever build uv finds for its version: set ``UV_FIND_LINKS`` or ``UV_INDEX`` for the CPU build.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from uv import find_uv_bin

from converter.system.amounts import amount

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("", "llamacpp", "reference", "onnx", "litert", "llamacpp,reference", "all")


def size(directory: Path) -> int:
    """Bytes of the files in a directory, at any depth."""
    return sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )


def measure(wheel: Path, extras: str, directory: Path) -> tuple[int, int, int]:
    """Bytes of the installed files, of those of PyTorch among them, and the number of distributions."""
    environment = directory / (extras or "base")
    variables = {**os.environ, "UV_CONSTRAINT": str(ROOT / "converter" / "constraints.txt")}
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    for words in (["venv", str(environment)], ["pip", "install", "--python", str(environment), wanted]):
        subprocess.run([find_uv_bin(), *words, "--quiet"], check=True, env=variables)
    (packages,) = environment.glob("lib/python*/site-packages")
    torch = packages / "torch"
    count = len(list(packages.glob("*.dist-info")))
    return size(packages), size(torch) if torch.is_dir() else 0, count


def main(wheel: Path) -> None:
    """Print the table."""
    print("| extras | packages | on the disk | of which PyTorch |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for extras in EXTRAS:
            whole, torch, count = measure(wheel.resolve(), extras, Path(directory))
            name = f"`{re.sub(',', '`, `', extras)}`" if extras else "none"
            print(f"| {name} | {count} | {amount(whole)} | {amount(torch) if torch else '-'} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
