"""Numba's compiler, with its results kept on disk where there is a place for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


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
