"""One file that is written beside its destination and takes its place when it is whole.

The only place that makes names for such files. A reader sees the old file or the new one, never a part. What
becomes a whole directory has its own way: ``scratch`` and ``publication``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from converter.system import interruption

#: How names of unfinished files match, for whoever clears what killed runs left: they begin with a dot.
UNFINISHED: Final = ".*.partial"


def sync(path: Path) -> None:
    """Have a file or a directory on the disk before this returns; raises ``OSError``.

    Links are followed, for the output directory itself may be one.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name beside ``path`` that nothing has, for the block to make a file of. At its end that file becomes
    ``path``.

    After an error or a signal in the block the file is gone and ``path`` is what it was. A link at ``path``
    is replaced, not followed. With ``durable`` the file and its name are on the disk at the end, whenever the
    machine stops. Raises ``OSError``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with ExitStack() as undo:
        undo.callback(interruption.undone_later(_forget, temporary))
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a small file whole or not at all (text as UTF-8), and its directory if there is none. See
    ``replacing``. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary, temporary.open("xb") as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


def _forget(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink()
