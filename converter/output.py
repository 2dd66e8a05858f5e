"""The output directory: written under a temporary name beside it, renamed when whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converter.amounts import amount
from converter.document import read_object
from converter.errors import CheckpointError, DestinationError

MANIFEST = "manifest.json"
_INSIDE = ".qatconvert.partial"
_MANIFEST_BYTES = 64 << 20


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def check_destination(output: Path, force: bool) -> None:
    """Raise ``DestinationError`` if ``output`` cannot become the output directory.

    It may be absent or an empty directory; one with files is refused unless ``force``.
    """
    try:
        if output.exists() and not output.is_dir():
            raise DestinationError(f"{output} is a file: choose another directory with --output")
        if output.is_symlink() and not output.exists():
            raise DestinationError(f"{output} is a link to nowhere: choose another --output")
        if ".." in output.parts and not output.parent.exists():
            raise DestinationError(f"{output}: {output.parent} does not exist; choose another --output")
        if output.is_dir() and not force and any(path.name != _INSIDE for path in output.iterdir()):
            raise DestinationError(f"{output} is not empty: choose another --output, or add --force")
        place = _existing(output)
    except OSError as error:
        raise DestinationError(f"{output}: {_reason(error)}") from error
    if not place.is_dir():
        raise DestinationError(f"{output}: {place} is a file; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DestinationError(f"{place}: no permission to write there; choose another --output")


def check_source(output: Path, files: Iterable[Path]) -> None:
    """Raise ``DestinationError`` if ``output`` holds one of the files that are converted: replacing what
    lies there could destroy the source."""
    place = output.resolve()
    for file in files:
        if place in file.absolute().parents or place in file.resolve().parents:
            raise DestinationError(f"{output} holds the checkpoint itself: choose another --output")


def check_elsewhere(directory: Path, output: Path) -> None:
    """Raise ``DestinationError`` if ``directory``, to which something else is written, is ``output`` or in
    it: what is there belongs to the conversion."""
    place = Path(os.path.realpath(directory))
    if Path(os.path.realpath(output)) in (place, *place.parents):
        raise DestinationError(
            f"{directory} is in the output directory {output}: choose a place outside of it"
        )


def check_places(output: Path, files: Iterable[Path]) -> None:
    """Raise ``DestinationError`` if one of ``files`` (relative) cannot replace what is in ``output``."""
    for file in files:
        for place in (output / file, *(output / parent for parent in file.parents)):
            if os.path.lexists(place) and place.is_dir() == (place == output / file):
                kind = "a directory" if place.is_dir() else "a file"
                raise DestinationError(f"{place} is {kind} in the way: choose another --output")


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
            f"{place}: {amount(needed)} needed, {amount(free)} free; make room there or choose "
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


def publish(scratch: Path, output: Path, keep: bool = False) -> None:
    """Move what ``scratch`` holds to ``output``: in one step where there is none, else the manifest last.

    Of an earlier conversion in ``output``, only the files that its manifest lists are removed, or none if
    ``keep``; files of other origin stay. Raises ``DestinationError``, before anything is removed, if
    something else is in the way.
    """
    if not os.path.lexists(output):
        os.rename(scratch, output)
        return
    files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    check_places(output, files)
    for old in [] if keep else _earlier_files(output):
        with suppress(FileNotFoundError):
            (output / old).unlink()
    for file in sorted(files, key=lambda file: file.name == MANIFEST):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / file, output / file)


def earlier_manifest(output: Path) -> dict[str, object]:
    """The manifest in ``output``, empty if there is none or it cannot be read."""
    try:
        return read_object(output / MANIFEST, _MANIFEST_BYTES)
    except CheckpointError:
        return {}


def _earlier_files(output: Path) -> list[Path]:
    """Files that an earlier conversion left in ``output``, the manifest first; what a name leads to by way
    of ``..`` or a link is not ours."""
    listed = earlier_manifest(output).get("artifacts")
    entries = listed if isinstance(listed, list) else []
    names = [MANIFEST, *(entry.get("path") for entry in entries if isinstance(entry, dict))]
    plain = [Path(name) for name in names if isinstance(name, str) and name.isprintable()]
    return [name for name in plain if _is_inside(output, name)]


def _is_inside(output: Path, name: Path) -> bool:
    """Whether ``name`` is a file in ``output`` or in a true directory below it."""
    place, root = output / name, output.resolve()
    try:
        return not name.is_absolute() and place.is_file() and place.parent.resolve() == root / name.parent
    except OSError:
        return False


def write_file(path: Path, text: str) -> None:
    """Write one UTF-8 file whole or not at all; raises ``DestinationError``."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not path.is_file():  # replacing a device would take it from the whole system
            raise DestinationError(f"{path} is no regular file: choose another --output")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as stream:  # never through a link
            stream.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise DestinationError(f"{path}: {_reason(error)}; choose another --output") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
