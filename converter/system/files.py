"""What a file was when it was looked at, by which a change shows later."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from converter.errors import CheckpointError, QatconvertError


@dataclass(frozen=True, slots=True)
class FileState:
    """Which file a name led to, its length, and its times in nanoseconds."""

    device: int
    inode: int
    size: int
    #: Any program can set it.
    modified: int
    #: The system's own, which also moves when a file is replaced and put back.
    changed: int


def state_of(path: Path) -> FileState | None:
    """The state of a regular file, by way of links; ``None`` if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Watch:
    """The files of a ``directory``, and which of them must stay what they are."""

    directory: Path
    #: What they were, by name, before any of them was read.
    before: Mapping[str, FileState]
    #: Whether a file must stay what it is, by its name.
    matter: Callable[[str], bool]

    def check(self, files: Iterable[Path] = ()) -> None:
        """Raise ``CheckpointError`` if a file that matters, or one of ``files``, is not what it was, has come
        or has gone."""
        listed = filter(self.matter, [*self.before, *_names(self.directory)])
        for name in sorted({*listed, *(file.name for file in files)}):
            if state_of(self.directory / name) != self.before.get(name):
                raise CheckpointError(
                    f"{self.directory / name}: changed while it was read: run the same command again"
                )

    @contextmanager
    def around(self, files: Iterable[Path] = ()) -> Iterator[None]:
        """Check after work that reads the files, also when it failed: the change is then the cause."""
        try:
            yield
        except QatconvertError:
            self.check(files)
            raise
        self.check(files)


def watch(
    directory: Path, matter: Callable[[str], bool], earlier: Mapping[str, FileState] | None = None
) -> Watch:
    """Begin to watch a directory's files; ``earlier`` are states of some that were read before."""
    states = {name: state_of(directory / name) for name in _names(directory)}
    found = {name: state for name, state in states.items() if state is not None}
    return Watch(directory, {**found, **(earlier or {})}, matter)


def _names(directory: Path) -> list[str]:
    """What lies in a directory; nothing if it cannot be read, which whoever opens it will say."""
    try:
        return os.listdir(directory)
    except OSError:
        return []
