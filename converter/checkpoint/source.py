"""Where a checkpoint is read from: a directory is one kind of source.

A kind is one module with a ``SourceKind``, and an entry point in the group ``qatconvert.sources`` that is
called as the kind is. Nothing heavy is imported here, because what a model's name means depends on the kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from converter.checkpoint.documents import Files
from converter.errors import CheckpointError, ExtensionError
from converter.system.extensions import load, registered

if TYPE_CHECKING:
    from converter.checkpoint.safetensors import Shards
    from converter.system.digests import Digests

#: Entry points of kinds.
_GROUP: Final = "qatconvert.sources"


class CheckpointSource(Files, Protocol):
    """A place that a checkpoint is read from: the files beside its weights, and its stored tensors."""

    @property
    def kind(self) -> str:
        """What it is: ``directory``."""

    @property
    def files(self) -> Sequence[Path]:
        """Every file of the system that was read, and the one with the text to judge the checkpoint on where
        it brings one. Empty until ``with_files`` says so."""

    def with_files(self, files: Iterable[Path]) -> CheckpointSource:
        """The same source, of which ``files`` were read; some may be named more than once."""

    def tensors(self) -> Shards:
        """The stored tensors, validated. Raises ``CheckpointError``."""

    def has_weights(self) -> bool:
        """Whether all stored tensors are there, so that ``tensors`` can be asked for. Raises
        ``CheckpointError`` for what should tell it and is damaged."""

    def entries(self, digests: Digests) -> list[dict[str, object]]:
        """``{"path", "bytes", "sha256"}`` of those of ``files`` that were added to ``digests``, as reports
        and manifests list them. Waits for the digests. Raises ``CheckpointError`` for a file that can no
        longer be read."""

    def directory(self) -> Path:
        """A directory from which ``transformers`` loads the checkpoint, for programs that take nothing else.
        It lasts as long as the process. Raises ``CheckpointError`` if there can be none."""


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One kind of place that checkpoints are read from."""

    #: What messages about the kind call it.
    name: str
    #: ``recognises(path)`` looks at what lies at a path, without reading much of it.
    recognises: Callable[[Path], bool]
    #: ``open(path)`` gives the source; it raises ``CheckpointError``.
    open: Callable[[Path], CheckpointSource]
    #: How names of such files end; the rest of the name is the model's.
    suffix: str = ""
    #: Asked only where no other kind recognises the path.
    last_resort: bool = False


def open_source(path: Path) -> CheckpointSource:
    """The source at a path. Raises ``CheckpointError`` where there is none of a registered kind, and as
    ``find_kind`` does."""
    kind, broken = find_kind(path)
    if kind is None:
        raise CheckpointError("; ".join([f"{path}: is neither a directory nor another source", *broken]))
    return kind.open(path)


def find_kind(path: Path) -> tuple[SourceKind | None, Sequence[str]]:
    """The registered kind that recognises what lies at a path, the last resort if no other does, ``None``
    without any. With it comes a line for each kind that cannot be loaded or fails on the path.

    Raises ``CheckpointError`` where two kinds recognise it."""
    found: list[SourceKind] = []
    broken = []
    for name in registered(_GROUP):
        try:
            kind = load(_GROUP, name, SourceKind)
            if kind.recognises(path):
                found.append(kind)
        except ExtensionError as error:
            broken.append(str(error))
        except Exception as error:  # another package's code, which must not take all checkpoints away
            broken.append(f"the source {name} fails on it: {type(error).__name__}: {error}")
    found = [kind for kind in found if not kind.last_resort] or found
    if len(found) > 1:
        names = " and ".join(repr(kind.name) for kind in found)
        raise CheckpointError(f"{path}: the sources {names} recognise it: uninstall all but one")
    return (found[0] if found else None), broken
