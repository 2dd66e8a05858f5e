"""Write the lock files: every version that an installation has, with the SHA-256 of its files.

``make lock`` runs this. The versions are those of ``converter/constraints.txt``, and for what that does not
name those of the lock file before, or else the newest. They hold on every platform and from Python 3.11 on.

PyTorch is left out, and so is what only its CUDA build needs: which of its builds suits a machine is for its
user to choose.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from uv import find_uv_bin

ROOT: Final = Path(__file__).resolve().parents[1]
CONSTRAINTS: Final = ROOT / "converter" / "constraints.txt"
#: Extras by the lock file that has them.
LOCKS: Final[Mapping[str, Sequence[str]]] = {"base": (), "all": ("all",)}
#: PyTorch's, and beginnings of names of what its CUDA build brings.
LEFT_OUT: Final = ("torch", "triton", "cuda-", "nvidia-")


def left_out(name: str) -> bool:
    """Whether no lock file has the distribution."""
    return any(name == one or (one.endswith("-") and name.startswith(one)) for one in LEFT_OUT)


def lock(output: Path, extras: Sequence[str]) -> None:
    """Write the lock file ``output`` for ``extras``."""
    words = ["pip", "compile", "pyproject.toml", "--constraint", "converter/constraints.txt"]
    words += [word for extra in extras for word in ("--extra", extra)]
    words += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--quiet"]
    words += ["--custom-compile-command", "make lock", "--output-file", str(output)]
    subprocess.run([find_uv_bin(), *words], cwd=ROOT, check=True)
    output.write_text("".join(_kept(output.read_text().splitlines(keepends=True))))


def _kept(lines: Sequence[str]) -> list[str]:
    kept, skipped = [], False
    for line in lines:
        if line[:1].isalnum():
            skipped = left_out(Requirement(line.rstrip("\\\n ")).name)
        if not skipped:
            kept.append(line)
    return kept


if __name__ == "__main__":
    for name, wanted in LOCKS.items():
        lock(ROOT / "requirements" / f"{name}.lock", wanted)
