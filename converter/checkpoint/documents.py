"""The files beside a checkpoint's weights, each as it was when it was first read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Protocol

from converter.errors import CheckpointError
from converter.filenames import EVALUATION_TEXT
from converter.system.untrusted import CONFIG_BYTES, Settings, bounded, parse_object

#: Largest ``tokenizer.json`` that is read; Gemma 4's has 32 MB.
TOKENIZER_BYTES: Final = 64 << 20
#: Most bytes of a checkpoint's own evaluation text.
EVALUATION_BYTES: Final = 1 << 20
#: Larger files are not kept in memory. Gemma 4's tokenizer is one; the other files have a few KB.
_KEPT_BYTES: Final = 1 << 20


class Files(Protocol):
    """Files by their names, in a directory or in whatever else holds a checkpoint. ``str`` of it is what
    messages call the whole."""

    def __contains__(self, name: object) -> bool:
        """Whether there is such a file. A link to nowhere counts: reading it is an error."""

    def path(self, name: str) -> Path:
        """The file of the system in which it lies, to be listed, hashed and watched."""

    def where(self, name: str) -> str:
        """What messages call it."""

    def head(self, name: str, most: int) -> bytes:
        """Its first bytes, at most ``most``. Raises ``CheckpointError`` whose message begins with
        ``where(name)`` and a colon."""


class Documents:
    """The files beside the weights of a checkpoint.

    What was read once does not change any more. A small file is kept, and of a large one the digest, by which
    another content is noticed. So what a target copies is what was checked when the checkpoint was opened.
    """

    __slots__ = ("_digests", "_files", "_kept")

    def __init__(self, files: Files) -> None:
        self._files = files
        self._kept: dict[str, bytes] = {}
        self._digests: dict[str, bytes] = {}

    def __str__(self) -> str:
        """Where the files lie, for messages."""
        return str(self._files)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file. A link to nowhere counts: reading it is an error."""
        return name in self._kept or name in self._files

    def path(self, name: str) -> Path:
        """The file of the system in which it lies, to be listed and watched. Its content is had by
        ``content``."""
        return self._files.path(name)

    def where(self, name: str) -> str:
        """What messages call the file."""
        return self._files.where(name)

    def content(self, name: str, limit: int = CONFIG_BYTES) -> bytes:
        """The bytes of a regular file of at most ``limit`` bytes. Raises ``CheckpointError``, also for a file
        that is not what it was when it was first read."""
        if name in self._kept:
            return self._kept[name]
        data = bounded(self._files.head(name, limit + 1), limit, self.where(name))
        if len(data) <= _KEPT_BYTES and name not in self._digests:
            self._kept[name] = data
        elif self._digests.setdefault(name, digest := hashlib.sha256(data).digest()) != digest:
            raise CheckpointError(
                f"{self.where(name)}: changed after it was read: run the same command again"
            )
        return data

    def text(self, name: str, limit: int = CONFIG_BYTES) -> str:
        """The UTF-8 text of a file; raises ``CheckpointError``."""
        try:
            return self.content(name, limit).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.where(name)}: not UTF-8 at byte {error.start}") from error

    def settings(self, name: str, limit: int = CONFIG_BYTES) -> Settings:
        """The JSON object in a file. Raises ``CheckpointError`` for a file that cannot be read or is no JSON
        object, and for an object that names a key twice."""
        where = self.where(name)
        return Settings(parse_object(self.text(name, limit), where), where)

    def optional(self, name: str) -> Settings:
        """The JSON object in a file that need not be there; an empty one without it. Raises as ``settings``
        does."""
        return self.settings(name) if name in self else Settings({}, self.where(name))


def evaluation_text(documents: Documents) -> Settings | None:
    """The JSON object with the text that a checkpoint brings to be judged on, ``None`` without one.

    It is read only here, so that a conversion that judges nothing does not fail at it. Raises
    ``CheckpointError``."""
    if EVALUATION_TEXT not in documents:
        return None
    return documents.settings(EVALUATION_TEXT, EVALUATION_BYTES)
