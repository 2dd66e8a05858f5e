"""Directories of a test: what lies in them, and small files to put there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def listing(directory: Path) -> list[str]:
    """Names of all that lies in ``directory`` and below it, relative to it, sorted."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write texts by their names below ``directory``."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
