"""The bytes of an artifact's tensors beside those that the target's rule makes of the checkpoint.

Every target stores a weight as one or several stretches of bytes (numbers, or codes and scales apart). Here
both sides are compared by ranges of rows on all cores, so that no tensor is ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from converter.system.processors import processors
from targets.target import Difference

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """A range of rows of one tensor."""

    tensor: str
    #: The first of the rows.
    first: int
    #: Gives the bytes that the rule makes of them, uint8 ``[rows, bytes of a row]``: an array for each
    #: stretch in which the tensor is stored.
    rule: Callable[[], Sequence[Bytes]]
    #: Gives the artifact's bytes, in the same order.
    stored: Callable[[], Sequence[Bytes]]
    #: What ``progress`` counts for them.
    size: int


def differing_tensors(
    ranges: Iterable[Rows], progress: Callable[[int], None] = lambda size: None, threads: int | None = None
) -> list[Difference]:
    """One difference for each tensor some of whose bytes are not the rule's; it names the first row.

    ``progress`` is called with the ``size`` of each range, by one thread at a time. Raises what reading a
    range raises.
    """
    found: dict[str, tuple[int, int]] = {}
    for rows, wrong in _in_order(ranges, threads or processors()):
        if wrong:
            first, count = found.get(rows.tensor, (wrong[0], 0))
            found[rows.tensor] = first, count + len(wrong)
        progress(rows.size)
    return [
        Difference(
            f"tensor {name}", "the bytes that the rule makes", f"others in {count} rows, first row {first}"
        )
        for name, (first, count) in found.items()
    ]


def _in_order(ranges: Iterable[Rows], threads: int) -> Iterable[tuple[Rows, list[int]]]:
    """Every range and the indices of its wrong rows, with a bounded number of ranges in memory."""
    waiting = iter(ranges)
    with ThreadPoolExecutor(threads) as pool:
        running: list[tuple[Rows, Future[list[int]]]] = []
        while True:
            running += [
                (rows, pool.submit(_wrong_rows, rows)) for rows in islice(waiting, 2 * threads - len(running))
            ]
            if not running:
                return
            rows, result = running.pop(0)
            yield rows, result.result()


def _wrong_rows(rows: Rows) -> list[int]:
    wrong: set[int] = set()
    for expected, stored in zip(rows.rule(), rows.stored(), strict=True):
        ours, theirs = (_by_row(array) for array in (expected, stored))
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{rows.tensor}: stretches of {theirs.shape} bytes where {ours.shape} are expected"
            )
        if not np.array_equal(ours, theirs):
            wrong.update(int(row) for row in np.flatnonzero((ours != theirs).any(axis=1)))
    return sorted(rows.first + row for row in wrong)


def _by_row(array: Bytes) -> Bytes:
    """Bytes as uint8 ``[rows, bytes]``."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(contiguous.shape[0], -1).view(np.uint8)
