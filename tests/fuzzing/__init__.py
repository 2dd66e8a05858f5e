"""Fuzzers of the readers: right files, damaged with knowledge of their format, and what each reader does.

    PYTHONPATH=.:tests python -m fuzzing --format gguf --seconds 600 --seed 7

A reader either reads a file or raises a ``QatconvertError`` of one printable line, within a limit of time
and of memory; anything else is a failure, whose files are kept. A case is known by format, seed and index:
the same command gives the same cases, and ``--first 1234 --cases 1`` runs one of them again.

There is one module for each format, with a ``FORMAT``; ``fuzzing.trial`` runs cases in a child process, where
a crash, a hang or a lack of memory is noticed too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

#: Contents by the name of the file, below a format's directory; ``None`` for a file that is gone.
Files = Mapping[str, bytes]
Damage = Mapping[str, bytes | None]

NAMES = ("safetensors", "documents", "gguf", "onnx", "litert")


@dataclass(frozen=True)
class Format:
    """One format.

    ``write(directory)`` writes right files, ``damage(files, random)`` gives those of them that a case
    changes, and ``read(directory)`` reads all that the program reads of such files.
    """

    name: str
    write: Callable[[Path], None]
    damage: Callable[[Files, Random], Damage]
    read: Callable[[Path], None]


def find(name: str) -> Format:
    """The format of a module in this package."""
    found: Format = import_module(f"fuzzing.{name}").FORMAT
    return found


def read_files(directory: Path) -> dict[str, bytes]:
    """The right files of a format."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def case(format: Format, files: Files, seed: int, index: int) -> Damage:
    """The files that a case changes."""
    return format.damage(files, Random(f"{format.name}:{seed}:{index}"))
