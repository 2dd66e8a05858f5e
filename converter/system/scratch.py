"""The directory in which an output is made before it appears, and the lock that keeps two runs apart.

Both lie beside the output, or in it where it exists: it may be a file system of its own, across which nothing
can be renamed. Others may be able to write there (``/tmp``), so nothing that is found is trusted. The lock is
a plain file of this user, and only the directory whose number it holds was made by a run of this program.
What is anybody else's is neither used nor emptied.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converter.errors import DestinationError
from converter.system import interruption
from converter.system.publication import is_interrupted, recover

_DIRECTORY: Final = ".qatconvert.partial"
_LOCK: Final = ".qatconvert.lock"
#: Names in an output directory that are no part of its content.
OWN_NAMES: Final = (_DIRECTORY, _LOCK)
#: Bytes of a lock file, always written as a whole.
_RECORD: Final = 1024
_MOST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an output's scratch directory and its lock lie."""

    directory: Path
    lock: Path


def _inside(output: Path) -> _Place:
    return _Place(output / _DIRECTORY, output / _LOCK)


def _beside(output: Path) -> _Place:
    parent = output.absolute().parent
    return _Place(parent / f".{output.name}.partial", parent / f".{output.name}.lock")


def _place(output: Path) -> _Place:
    return _inside(output) if output.is_dir() else _beside(output)


@contextmanager
def scratch_directory(output: Path, work: str = "qatconvert") -> Iterator[Path]:
    """An empty directory beside or in ``output``, removed at the end whatever happens.

    It is named after ``output``, so that what a killed run left is found and cleared by the next one. Another
    run that is at work there is named with its ``work``, its process and its beginning. Raises
    ``DestinationError`` for that, and for a directory, a link or a file in the way that no run of this
    program made.
    """
    try:
        with locked(output, work) as lock:
            if output.is_dir():
                recover(output)
            directory = lock.place.directory
            with ExitStack() as undo:
                with interruption.deferred():  # a signal is raised when it is known what to remove
                    undo.callback(interruption.undone_later(_remove, directory, _make(lock)))
                yield directory
    except OSError as error:
        where = error.filename or output
        raise DestinationError(f"{where}: {error.strerror or error}; choose another --output") from error


def settle(output: Path, work: str) -> None:
    """End what a run that was killed while it published left half done in ``output``: see ``recover``. To be
    called before anything is decided by what lies there. Raises ``DestinationError``."""
    if is_interrupted(output):
        with locked(output, work):
            recover(output)


@dataclass(frozen=True, slots=True)
class Lock:
    """A held lock."""

    place: _Place
    #: Its open file.
    handle: int
    #: What the run does that holds it.
    work: str

    def record(self, number: int | None) -> None:
        """Note whose the lock is and the number (inode) of the run's directory."""
        held = {"process": os.getpid(), "work": self.work[:_MOST_TEXT], "directory": number}
        os.pwrite(self.handle, json.dumps(held).encode().ljust(_RECORD), 0)


@contextmanager
def locked(output: Path, work: str) -> Iterator[Lock]:
    """Hold the lock of ``output``, which goes with the block, and clear what a killed run left. Raises
    ``DestinationError`` if another run has the lock, or if its file is not ours."""
    if output.is_dir():
        _clear_beside(output)
    with ExitStack() as undo:
        with interruption.deferred():  # a signal is raised when it is known what to release
            place, handle = _take(output)
            undo.callback(interruption.undone_later(_release, place.lock, handle))
        _clear(place, handle)
        lock = Lock(place, handle, work)
        lock.record(None)
        yield lock


def _take(output: Path) -> tuple[_Place, int]:
    """The place and the open file of the lock of ``output``, held."""
    while True:
        place = _place(output)
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(place.lock, output)
        if handle is None:
            continue
        if _place(output) == place:
            return place, handle
        _release(place.lock, handle)  # the output appeared meanwhile: its lock is another


def _clear_beside(output: Path) -> None:
    """Refuse if a run that began before ``output`` was there goes on, and clear what a killed one left."""
    place = _beside(output)
    if not os.path.lexists(place.lock):
        return
    with ExitStack() as undo:
        with interruption.deferred():
            handle = _acquire(place.lock, output)
            if handle is None:
                return
            undo.callback(interruption.undone_later(_release, place.lock, handle))
        _clear(place, handle)


def _clear(place: _Place, handle: int) -> None:
    """Remove the scratch directory that a killed run noted in its lock."""
    if (number := _read(handle).directory) is not None:
        _remove(place.directory, number)


def _acquire(path: Path, output: Path) -> int | None:
    """The open and locked file ``path``; ``None`` if its holder has just removed it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if path.is_symlink():
        raise DestinationError(f"{path} is a link, not a lock: remove it, or choose another --output")
    with suppress(FileNotFoundError):
        if (found := path.lstat()).st_uid != os.geteuid():
            raise DestinationError(f"{path} is user {found.st_uid}'s: choose another --output")
    handle = os.open(path, flags, 0o600)
    try:
        opened = os.fstat(handle)
        if not stat.S_ISREG(opened.st_mode) or opened.st_uid != os.geteuid() or opened.st_nlink > 1:
            raise DestinationError(
                f"{path} is no lock of this program: remove it, or choose another --output"
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DestinationError(f"{output}: another run is writing there{_holder(handle)}") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), opened):
                return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _release(path: Path, handle: int) -> None:
    """Remove a lock that is held, then let go of it."""
    try:
        with suppress(OSError):
            if os.path.samestat(path.lstat(), os.fstat(handle)):
                path.unlink()
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class _Record:
    process: int | None
    work: str
    directory: int | None


def _read(handle: int) -> _Record:
    """What a lock says; nothing of a file that says something else."""
    try:
        found = json.loads(os.pread(handle, _RECORD, 0) or b"{}")
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, dict):
        found = {}
    process, work, directory = found.get("process"), found.get("work"), found.get("directory")
    return _Record(
        process if type(process) is int else None,
        work[:_MOST_TEXT] if isinstance(work, str) and work.isprintable() else "",
        directory if type(directory) is int else None,
    )


def _holder(handle: int) -> str:
    """Who holds a lock, for a message."""
    held, since = _read(handle), os.fstat(handle).st_mtime
    if held.process is None:
        return "; wait for it to end"
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    work = f", {held.work}" if held.work else ""
    return f" (process {held.process}{work}, since {began}); wait for it to end"


def _make(lock: Lock) -> int:
    """The number of a new and empty scratch directory. For a caller that lets signals wait."""
    directory = lock.place.directory
    if os.path.lexists(directory):
        _check_empty(directory)
        directory.rmdir()
    directory.mkdir()
    number = directory.lstat().st_ino
    lock.record(number)
    return number


def _check_empty(directory: Path) -> None:
    """Raise ``DestinationError`` for anything but an empty directory of this user."""
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise DestinationError(
            f"{directory}: Not a directory, but a link; remove it, or choose another --output"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise DestinationError(f"{directory}: File exists in its way; move it, or choose another --output")
    if found.st_uid != os.geteuid():
        raise DestinationError(f"{directory} is user {found.st_uid}'s: choose another --output")
    if any(directory.iterdir()):
        raise DestinationError(
            f"{directory} holds files and was not made by qatconvert: move it, or choose another --output"
        )


def _remove(directory: Path, number: int) -> None:
    """Remove a directory if it still is the one of this ``number``."""
    with suppress(OSError):
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_ino == number:
            shutil.rmtree(directory, ignore_errors=True)
