"""How a target's files lie in a repository of the Hub, and how people use them from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from converter.errors import ExtensionError, UsageError
from targets.target import find_target


@dataclass(frozen=True, slots=True)
class Usage:
    """One runtime, and lines for a shell that run the model in it."""

    runtime: str
    lines: tuple[str, ...]


@runtime_checkable
class Publishable(Protocol):
    """What a target may have beside the rest. Without it, files lie in a repository as they lie below an
    output directory, and the model card does not say how to run them."""

    #: The Hub's name of the library for repositories that hold its artifacts alone.
    library: str

    def place(self, path: str) -> str:
        """The name in a repository of a file that lies at ``path`` below an output directory."""

    def published(self, path: str, content: bytes) -> bytes | None:
        """What a repository has in place of ``content``, the file at ``path``; ``None`` where it has the same
        bytes. Raises ``CheckpointError`` for a damaged file."""

    def original(self, path: str, content: bytes) -> bytes:
        """The inverse of ``published``: what the file had at ``path`` below an output directory."""

    def usage(self, repo: str, paths: Sequence[str]) -> Sequence[Usage]:
        """How to run the files that lie at ``paths``, the main one first, below an output directory and were
        published to ``repo``."""


class InPlace:
    """For a target whose files lie in a repository as they lie below an output directory."""

    def place(self, path: str) -> str:
        """See ``Publishable``."""
        return path

    def published(self, path: str, content: bytes) -> bytes | None:
        """See ``Publishable``."""
        return None

    def original(self, path: str, content: bytes) -> bytes:
        """See ``Publishable``."""
        return content


#: Longest file that a repository has in another form.
LARGEST: Final = 1 << 20


def publishable(name: str) -> Publishable | None:
    """What the target ``name`` tells; ``None`` for one that tells nothing or is not installed."""
    try:
        target = find_target(name)
    except (ExtensionError, UsageError):
        return None
    return target if isinstance(target, Publishable) else None


def place_of(target: str | None, path: str) -> str:
    """The name in a repository of a file of ``target`` (``None``: of no target, such as a report)."""
    found = publishable(target) if target is not None else None
    return path if found is None else found.place(path)
