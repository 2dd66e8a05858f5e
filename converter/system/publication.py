"""How a finished output gets to its place: whole, or not at all, whenever the machine stops.

Where there was nothing, one rename does it. An earlier output is put aside before the new files are moved to
their place. If that is interrupted, it comes back: at once after an error, with the next run after a kill.
Every file and directory is on the disk before the step that relies on it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from converter.errors import CheckpointError, DestinationError
from converter.filenames import MANIFEST
from converter.system import interruption
from converter.system.replacing import sync, write_whole
from converter.system.untrusted import read_object

_MANIFEST_BYTES: Final = 64 << 20
#: What is put aside while new files take their place.
EARLIER: Final = ".qatconvert.earlier"
_FILES: Final = "files"
#: The state of a replacement is the name of its journal: old files leave, new ones arrive, all is done.
_LEAVING: Final = "leaving.json"
_ARRIVING: Final = "arriving.json"
_DONE: Final = "done.json"


def reason(error: OSError) -> str:
    """What the system says of an error."""
    return error.strerror or str(error)


def sync_tree(directory: Path) -> None:
    """``sync`` every file below ``directory``, then every directory, the inner ones first."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                sync(path)
        sync(Path(folder))


def check_places(output: Path, files: Iterable[Path]) -> None:
    """Raise ``DestinationError`` if one of ``files`` (relative) cannot replace what is in ``output``:
    something of another kind is in the way, or a link leads elsewhere."""
    for file in files:
        for parent in (parent for parent in file.parents if parent != Path()):
            if (output / parent).is_symlink():
                raise DestinationError(f"{output / parent} is a link in the way: choose another --output")
        for place in (output / file, *(output / parent for parent in file.parents)):
            if os.path.lexists(place) and place.is_dir() == (place == output / file):
                kind = "a directory" if place.is_dir() else "a file"
                raise DestinationError(f"{place} is {kind} in the way: choose another --output")


def publish(scratch: Path, output: Path, keep: bool = False, force: bool = True) -> None:
    """Move what ``scratch`` holds to ``output``: in one step where there is none, else the manifest last.

    Of an earlier conversion in ``output``, the files that its manifest lists and the new manifest does not
    are removed, or none if ``keep``. Files of other origin stay, and without ``force`` none of them is
    replaced. Raises ``DestinationError``, with everything as it was, if something else is in the way.
    """
    try:
        sync_tree(scratch)
        if not os.path.lexists(output):
            with interruption.deferred():
                os.rename(scratch, output)
                sync(output.absolute().parent)
            return
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        check_places(output, files)
        earlier = earlier_files(output)
        if not force:
            _check_ours(output, files, earlier)
        staying = {*files, *_listed(scratch)}
        gone = [] if keep else [file for file in earlier if file not in staying]
        replace(scratch, output, files, gone)
    except OSError as error:
        raise DestinationError(
            f"{error.filename or output}: {reason(error)}; choose another --output"
        ) from error


def _check_ours(output: Path, files: Iterable[Path], earlier: Sequence[Path]) -> None:
    for file in files:
        if os.path.lexists(output / file) and file not in earlier:
            raise DestinationError(
                f"{output / file} is in the way and no conversion wrote it: move it, choose another "
                "--output, or add --force"
            )


def replace(
    scratch: Path, output: Path, files: Iterable[Path], gone: Iterable[Path], last: Path = Path(MANIFEST)
) -> None:
    """Put ``gone`` and what ``files`` replace aside, move ``files`` from ``scratch`` to ``output``, and
    forget the old. ``last`` leaves first and arrives last: without it, nothing looks finished.

    The caller holds the lock and has had ``scratch`` on the disk. On an error everything is as it was.
    Raises ``OSError``.
    """
    with interruption.deferred():
        _replace(scratch, output, sorted(files, key=lambda file: (file == last, file)), {*gone}, last)


def _replace(scratch: Path, output: Path, files: Sequence[Path], gone: set[Path], last: Path) -> None:
    aside = output / EARLIER
    aside.mkdir()  # a run before left none: ``recover`` was called
    try:
        _write_journal(aside, files)
        for file in sorted({*gone, *files}, key=lambda file: (file != last, file)):
            if os.path.lexists(output / file):
                _move(output / file, aside / _FILES / file)
        sync_tree(aside)
        os.rename(aside / _LEAVING, aside / _ARRIVING)
        sync(aside)
        for file in files:
            _move(scratch / file, output / file)
        for folder in {output, *(output / parent for file in files for parent in file.parents)}:
            sync(folder)
        os.rename(aside / _ARRIVING, aside / _DONE)
        sync(aside)
    except BaseException:
        _settle(output)
        raise
    _settle(output)


def _move(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, place)


def _write_journal(aside: Path, files: Iterable[Path]) -> None:
    path = aside / _LEAVING
    path.write_text(json.dumps({"new": [file.as_posix() for file in files]}), encoding="utf-8")
    sync(path)
    sync(aside)


def is_interrupted(output: Path) -> bool:
    """Whether a run was killed while it replaced files in ``output``; ``recover`` brings the earlier ones
    back."""
    return os.path.lexists(output / EARLIER)


def recover(output: Path) -> None:
    """Bring back what a killed run had put aside, or forget it if that run had finished.

    The caller holds the lock. Raises ``DestinationError`` for something under that name that is not ours.
    """
    aside = output / EARLIER
    try:
        found = aside.lstat()
    except FileNotFoundError:
        return
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not own or {path.name for path in aside.iterdir()} - {_FILES, _LEAVING, _ARRIVING, _DONE}:
        raise DestinationError(f"{aside} was not made by qatconvert: move it, or choose another --output")
    try:
        with interruption.deferred():
            _settle(output)
    except OSError as error:
        raise DestinationError(
            f"{error.filename or aside}: {reason(error)}; choose another --output"
        ) from error


def _settle(output: Path) -> None:
    """End a replacement that stopped anywhere: with the new files if all had arrived, else with the old."""
    aside = output / EARLIER
    if not (aside / _DONE).exists():
        if (aside / _ARRIVING).exists():
            _remove_new(output, aside / _ARRIVING)
            os.rename(aside / _ARRIVING, aside / _LEAVING)  # what comes back now is never taken for new
            sync(aside)
        for folder, _, names in os.walk(aside / _FILES):
            for name in names:
                old = Path(folder, name)
                _move(old, output / old.relative_to(aside / _FILES))
                sync((output / old.relative_to(aside / _FILES)).parent)
        sync(output)
    shutil.rmtree(aside / _FILES, ignore_errors=True)
    for name in (_LEAVING, _ARRIVING, _DONE):
        (aside / name).unlink(missing_ok=True)
    aside.rmdir()
    sync(output)


def _remove_new(output: Path, journal: Path) -> None:
    """Remove the files that had arrived; each one's place was made free before."""
    listed = read_object(journal, _MANIFEST_BYTES).get("new")
    names = [Path(name) for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    for name in names:
        if is_inside(output, name):
            (output / name).unlink()
        for parent in (output / parent for parent in name.parents if parent != Path()):
            with suppress(OSError):
                parent.rmdir()  # only an empty one goes


def earlier_manifest(output: Path) -> dict[str, object]:
    """The manifest in ``output``, empty if there is none or it cannot be read."""
    try:
        return read_object(output / MANIFEST, _MANIFEST_BYTES)
    except CheckpointError:
        return {}


def earlier_files(output: Path) -> list[Path]:
    """Files that an earlier conversion left in ``output``, the manifest first. What a name leads to by way of
    ``..`` or a link is not ours."""
    return [name for name in (Path(MANIFEST), *_listed(output)) if is_inside(output, name)]


def _listed(directory: Path) -> list[Path]:
    """The names of files that the manifest in ``directory`` lists."""
    listed = earlier_manifest(directory).get("artifacts")
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    return [Path(name) for name in names if isinstance(name, str) and name.isprintable()]


def is_inside(output: Path, name: Path) -> bool:
    """Whether ``name`` is a file in ``output`` or in a true directory below it."""
    place, root = output / name, output.resolve()
    try:
        return not name.is_absolute() and place.is_file() and place.parent.resolve() == root / name.parent
    except OSError:
        return False


def write_file(path: Path, text: str) -> None:
    """Write one UTF-8 file whole or not at all; raises ``DestinationError``."""
    try:
        if path.exists() and not path.is_file():  # replacing a device would take it from the whole system
            raise DestinationError(f"{path} is no regular file: choose another --output")
        write_whole(path, text, durable=True)
    except OSError as error:
        raise DestinationError(f"{path}: {reason(error)}; choose another --output") from error
