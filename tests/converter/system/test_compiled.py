"""Compiled functions, with and without a place for what the compiler made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import pytest

from converter.system.compiled import compiled


@pytest.fixture
def homeless() -> Callable[[int], int]:
    """A function for which Numba finds no place to keep machine code, as in a read-only installation."""
    names: dict[str, Any] = {}
    exec("def double(value):\n    return 2 * value\n", names)
    double: Callable[[int], int] = names["double"]
    return double


def test_numba_itself_refuses_a_function_without_a_place_for_its_code(homeless: Callable[[int], int]) -> None:
    """The reason why ``compiled`` is there (Numba 0.68)."""
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(homeless)


def test_without_such_a_place_a_function_is_compiled_all_the_same(homeless: Callable[[int], int]) -> None:
    double = compiled()(homeless)
    assert double(21) == 42
    assert double.signatures


def test_options_reach_the_compiler(homeless: Callable[[int], int]) -> None:
    assert compiled(inline="always")(homeless).targetoptions["inline"] == "always"
