"""Numba's compiler, with its results kept on disk where there is a place for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from numba import njit
from numba.core import event

from converter.system.progress import beside

#: The stage of a compilation: it happens within another one, where a function is called for the first time.
COMPILING: Final = "compiling the lattice code (once)"


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function with ``numba.njit(**options)``, to run without the interpreter's lock.

    The machine code is kept beside the module or in the user's cache directory. Where neither can be written
    (an installation that is read-only, for a user without a home), each process compiles anew.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # Numba 0.68 finds no place for its cache
            return njit(nogil=True, **options)(function)

    return decorate


def kept_code(function: Any) -> tuple[Path | None, bool]:
    """The directory in which the machine code of a ``compiled`` function is kept, ``None`` if there is no
    place for it, and whether some is there by now."""
    if (place := function.stats.cache_path) is None:
        return None, False
    name = f"{function.py_func.__module__.rpartition('.')[2]}.{function.py_func.__qualname__}-*.nbi"
    return Path(place), any(Path(place).glob(name))


class _Announcer(event.Listener):  # type: ignore[misc]
    """Tells that Numba compiles, which it does under a lock of its own. Code that comes from the disk is not
    compiled."""

    def __init__(self) -> None:
        self._depth = self._functions = 0

    def on_start(self, event: object) -> None:
        """A function is compiled, perhaps for another one that is."""
        self._depth += 1
        beside(COMPILING, self._functions, self._functions + 1)

    def on_end(self, event: object) -> None:
        """It was compiled, or could not be."""
        self._depth -= 1
        self._functions += not self._depth
        beside(COMPILING, self._functions, self._functions + bool(self._depth))


event.register("numba:compile", _Announcer())
