"""Objects that distributions register by entry points, each loaded when it is used.

What another distribution registers may be broken or register a name twice. That is one error, which names the
entry point and the distribution. It comes up only where the object is asked for.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, TypeVar, overload

from converter.errors import ExtensionError

_T = TypeVar("_T")


def entries(group: str) -> EntryPoints:
    """The entry points of a group, of all distributions.

    Reading the metadata of what is installed takes milliseconds, so they are kept as long as the directories
    that are imported from stay as they are.
    """
    return _entries(group, tuple((place, _changed(place)) for place in sys.path))


@lru_cache(maxsize=256)
def _entries(group: str, places: tuple[tuple[str, int], ...]) -> EntryPoints:
    return entry_points(group=group)


def _changed(place: str) -> int:
    """When a directory was changed last, in nanoseconds; 0 for what is none."""
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def registered(group: str) -> tuple[str, ...]:
    """Names in an entry-point group, sorted; loads none of the objects."""
    return tuple(sorted({entry.name for entry in entries(group)}))


@overload
def load(group: str, name: str) -> Any: ...
@overload
def load(group: str, name: str, kind: type[_T]) -> _T: ...
def load(group: str, name: str, kind: type[Any] = object) -> Any:
    """The object of type ``kind`` that is registered as ``name``, which must be one of the group's names.

    Raises ``ExtensionError`` for a name that several distributions register, for an object that cannot be
    loaded, whatever its module does, and for one of another type.
    """
    entry, *others = entries(group).select(name=name)
    if others:
        places = " and ".join(sorted(map(_distribution, (entry, *others))))
        raise ExtensionError(f"entry point {name!r} of {group} is registered by {places}: uninstall one")
    where = f"entry point {name!r} of {group}, which {_distribution(entry)} registers,"
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExtensionError(f"{where} cannot be loaded: {cause}") from error
    if not isinstance(found, kind):
        raise ExtensionError(f"{where} is no {kind.__name__}, but {type(found).__name__}")
    return found


def provider(group: str, name: str) -> str:
    """Name and version of the distribution that registers ``name``; empty where none does."""
    found = [entry.dist for entry in entries(group).select(name=name) if entry.dist is not None]
    return f"{found[0].name} {found[0].version}" if found else ""


def _distribution(entry: EntryPoint) -> str:
    return repr(entry.dist.name) if entry.dist is not None else "an unknown distribution"
