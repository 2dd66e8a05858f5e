"""What a target knows of a family of models: one object per family and target.

The objects stand in the entry-point groups ``qatconvert.families.TARGET`` under the family's name, so that
another distribution can bring one. What is true of a model whatever runs it stands on its ``Architecture``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from converter.errors import ExtensionError, TargetError
from converter.system.extensions import load, registered

_T = TypeVar("_T")


def known_families(target: str) -> tuple[str, ...]:
    """Names of the families that a target knows, sorted; loads none of the objects."""
    return registered(_group(target))


def family_of(target: str, family: str, kind: type[_T]) -> _T:
    """What ``target`` knows of the family of that name, an object of type ``kind``.

    Raises ``TargetError``, which lists the known families, if it knows nothing, and ``ExtensionError`` if
    the object cannot be loaded.
    """
    known = known_families(target)
    if family not in known:
        raise TargetError(f"{target}: the family {family} is not known; known: {', '.join(known)}")
    return load(_group(target), family, kind)


def find_family(target: str, like: str, kind: type[_T], fits: Callable[[_T], bool]) -> tuple[str, _T] | None:
    """The first family of a target whose object ``fits``, with its name; ``None`` if there is none.

    The one that is called ``like`` is looked at first. Another one that cannot be loaded does not fit. Raises
    ``ExtensionError`` if that one cannot.
    """
    names = known_families(target)
    for name in sorted(names, key=lambda name: (name != like, name)):
        try:
            found = load(_group(target), name, kind)
        except ExtensionError:
            if name == like:
                raise
            continue
        if fits(found):
            return name, found
    return None


def _group(target: str) -> str:
    return f"qatconvert.families.{target}"
