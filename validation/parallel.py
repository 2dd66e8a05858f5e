"""Work in threads, with results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_flight(function: Callable[[Task], Result], tasks: Iterable[Task], threads: int) -> Iterator[Result]:
    """Results in order, with a bounded number of tasks in flight, so that memory is bounded too."""
    waiting = iter(tasks)
    with ThreadPoolExecutor(threads) as pool:
        running: list[Future[Result]] = [pool.submit(function, task) for task in islice(waiting, 2 * threads)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(function, task) for task in islice(waiting, 1)]
