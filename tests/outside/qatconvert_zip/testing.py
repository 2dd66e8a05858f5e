"""Checkpoints in one ZIP file, for tests; see ``support.outside.ArchiveSource``."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from qatconvert_zip.source import KIND, MOST_DIRECTORY

__all__ = ["KIND", "MOST_DIRECTORY", "write_zip"]


def write_zip(directory: Path, file: Path, compression: int = ZIP_STORED) -> Path:
    """A ZIP with the files of a checkpoint's directory, by default stored as they are."""
    with ZipFile(file, "w", compression) as archive:
        for path in sorted(directory.iterdir()):
            archive.write(path, path.name)
    return file
