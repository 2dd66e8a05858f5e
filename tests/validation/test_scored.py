"""Which tokens of the evaluated text an engine scores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from validation.engine import scored_positions, scored_sequences
from validation.settings import Prepared
from validation.text import LONG, Tokens


def prepared(parameters: int, *cut: tuple[int, int]) -> Prepared:
    """Sequences of these lengths, of which so many first positions are context."""
    tokens = Tokens(
        tuple(tuple(range(length)) for length, _ in cut), (LONG,) * len(cut), tuple(first for _, first in cut)
    )
    made: Any = SimpleNamespace(checkpoint=SimpleNamespace(parameters=parameters), tokens=tokens)
    return cast(Prepared, made)


@pytest.mark.parametrize(
    ("parameters", "cut", "sequences", "positions"),
    [
        (10, [(4, 0), (3, 0)], [0, 1], None),
        (10, [(4, 0), (6, 3), (6, 4)], [0, 1], [0, 1, 2, 4, 5]),
        (10, [(6, 5), (4, 1)], [1], [1, 2]),
        (2 * 10**9, [(3, 0)] * 6, [0, 1, 2, 3], [0, 1, 3, 4, 6, 7, 9, 10]),
        (2 * 10**9, [(3, 0)] * 4, [0, 1, 2, 3], None),
        (10, [(6, 5)], [], []),
    ],
)
def test_what_is_mostly_context_is_left_out_and_of_a_large_model_all_but_four(
    parameters: int, cut: list[tuple[int, int]], sequences: list[int], positions: list[int] | None
) -> None:
    case = prepared(parameters, *cut)
    assert scored_sequences(case) == sequences
    found = scored_positions(case)
    assert (None if found is None else found.tolist()) == positions
    assert found is None or found.dtype == np.intp
