"""A checkpoint's directory, laid out as on the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from converter.checkpoint.safetensors import Shard, Shards, has_shards, open_shards
from converter.checkpoint.source import SourceKind
from converter.errors import CheckpointError
from converter.system.digests import Digests
from converter.system.untrusted import read_head


@dataclass(frozen=True, slots=True)
class Directory:
    """The source; see ``CheckpointSource``."""

    kind: ClassVar[str] = "directory"
    #: As the user gave it.
    root: Path
    #: Those of its files that were read.
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """The path."""
        return str(self.root)

    def __contains__(self, name: object) -> bool:
        """Whether it has such a file, which may be a link to nowhere."""
        return os.path.lexists(self.root / str(name))

    def path(self, name: str) -> Path:
        """The file."""
        return self.root / name

    def where(self, name: str) -> str:
        """Its path."""
        return str(self.root / name)

    def head(self, name: str, most: int) -> bytes:
        """Its first bytes, at most ``most``. Raises ``CheckpointError``."""
        return read_head(self.root / name, most)

    def names(self) -> list[str]:
        """Names of what lies in it, sorted. Raises ``CheckpointError``."""
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            raise CheckpointError(f"{self}: no such directory") from None
        except NotADirectoryError:
            raise CheckpointError(f"{self}: is not a directory") from None
        except OSError as error:
            raise CheckpointError(f"{self}: cannot be read: {error.strerror or error}") from error

    def shard(self, name: str) -> Shard:
        """One of its files, open. Raises ``CheckpointError``."""
        return Shard(self.root / name)

    def with_files(self, files: Iterable[Path]) -> Directory:
        """The same directory, of which ``files`` were read."""
        return replace(self, files=tuple(dict.fromkeys(files)))

    def tensors(self) -> Shards:
        """The tensors of its safetensors files. Raises ``CheckpointError``."""
        return open_shards(self)

    def has_weights(self) -> bool:
        """Whether all its safetensors files are there. Raises ``CheckpointError``."""
        return has_shards(self)

    def entries(self, digests: Digests) -> list[dict[str, object]]:
        """See ``CheckpointSource``; paths are relative to the directory, in which other files may lie too."""
        own = {file.relative_to(self.root).as_posix() for file in self.files}
        return [entry for entry in digests.entries(self.root) if entry["path"] in own]

    def directory(self) -> Path:
        """The directory itself."""
        return self.root


#: A path at which nothing lies is taken for a directory too, which says so when it is read.
KIND: Final = SourceKind(
    name=Directory.kind,
    recognises=lambda path: not path.is_file(),
    open=Directory,
    last_resort=True,
)
