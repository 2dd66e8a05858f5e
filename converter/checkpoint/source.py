"""Where a checkpoint comes from: a directory is one kind of source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from converter.system.digests import Digests


class CheckpointSource(Protocol):
    """A place that a checkpoint was opened at. ``str`` of it is what messages call it."""

    @property
    def kind(self) -> str:
        """What it is: ``directory``."""

    @property
    def files(self) -> Sequence[Path]:
        """Every file that was read, and the text to judge the checkpoint on where it brings one."""

    def entries(self, digests: Digests) -> list[dict[str, object]]:
        """``{"path", "bytes", "sha256"}`` of those files that were added to ``digests``, as reports and
        manifests list them. Waits for the digests. Raises ``CheckpointError`` for a file that can no longer
        be read."""

    def directory(self) -> Path:
        """A directory from which ``transformers`` loads the checkpoint, for programs that take nothing else.
        Raises ``CheckpointError`` if there can be none."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A checkpoint's directory, laid out as on the Hub."""

    kind: ClassVar[str] = "directory"
    path: Path
    #: Those of it that were read.
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """The path as the user gave it."""
        return str(self.path)

    def entries(self, digests: Digests) -> list[dict[str, object]]:
        """See ``CheckpointSource``; paths are relative to the directory, in which other files may lie too."""
        own = {file.relative_to(self.path).as_posix() for file in self.files}
        return [entry for entry in digests.entries(self.path) if entry["path"] in own]

    def directory(self) -> Path:
        """See ``CheckpointSource``."""
        return self.path
