"""The output directory: written under a temporary name beside it, renamed when whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converter.errors import DestinationError

MANIFEST = "manifest.json"
_INSIDE = ".qatconvert.partial"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def check_destination(output: Path, force: bool) -> None:
    """Raise ``DestinationError`` if ``output`` cannot become the output directory.

    It may be absent or an empty directory; one with files is refused unless ``force``.
    """
    try:
        if output.exists() and not output.is_dir():
            raise DestinationError(f"{output} is a file: choose another directory with --output")
        if output.is_dir() and not force and any(path.name != _INSIDE for path in output.iterdir()):
            raise DestinationError(f"{output} is not empty: choose another --output, or add --force")
        place = _existing(output)
    except OSError as error:
        raise DestinationError(f"{output}: {_reason(error)}") from error
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise DestinationError(f"{place}: no permission to write there; choose another --output")


def _existing(path: Path) -> Path:
    """The directory itself if it exists, else the nearest existing one above it."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place


def _scratch(output: Path) -> Path:
    """Beside ``output``, so that one rename makes it appear; inside, if it exists: it may be a file system
    of its own, across which nothing can be renamed."""
    return output / _INSIDE if output.is_dir() else output.absolute().parent / f".{output.name}.partial"


def check_space(output: Path, needed: int) -> None:
    """Raise ``DestinationError`` if fewer than ``needed`` bytes are free where ``output`` will lie."""
    place = _existing(output)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DestinationError(
            f"{place}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; make room there or choose "
            "another --output"
        )


@contextmanager
def scratch_directory(output: Path) -> Iterator[Path]:
    """An empty directory beside or in ``output``, removed at the end whatever happens.

    It is named after ``output``, so that what a killed run left is found and cleared by the next one; a
    lock tells a killed run from one that still goes on. Raises ``DestinationError``.
    """
    scratch = _scratch(output)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DestinationError(f"{scratch}: {_reason(error)}; choose another --output") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DestinationError(f"{output}: another run is writing there; wait for it to end") from error
        _empty(scratch)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DestinationError(f"{error.filename or scratch}: {_reason(error)}") from error
    finally:
        os.close(descriptor)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def publish(scratch: Path, output: Path) -> None:
    """Move what ``scratch`` holds to ``output``, the manifest last.

    Of an earlier conversion in ``output``, only the files that its manifest lists are removed; files of
    other origin stay.
    """
    files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    output.mkdir(parents=True, exist_ok=True)
    for old in _earlier_files(output):
        with suppress(FileNotFoundError):
            (output / old).unlink()
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / file, output / file)


def _earlier_files(output: Path) -> list[Path]:
    """Files that an earlier conversion left in ``output``, the manifest first; names that lead out of it
    are not ours."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        names = [Path(str(entry["path"])) for entry in manifest["artifacts"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    inside = [name for name in names if not name.is_absolute() and ".." not in name.parts]
    return [Path(MANIFEST), *inside]


def write_file(path: Path, text: str) -> None:
    """Write one UTF-8 file whole or not at all; raises ``DestinationError``."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise DestinationError(f"{path}: {_reason(error)}; choose another --output") from error
