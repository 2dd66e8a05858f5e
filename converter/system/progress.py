"""How far a long piece of work is, for whoever shows it.

Work that has several stages takes a ``Progress`` and names the stage each time. Work that is one stage takes
the part of that stage, a ``StageProgress``, which ``stage_of`` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

#: ``progress(stage, done, total)``: a stage's name, how much of it is done and how much there is. The unit
#: depends on the stage. ``progress(stage, 0, 0)`` tells that it begins, before anything of it is counted. It
#: is over when all of it is done, or when the same thread begins another.
Progress = Callable[[str, int, int], None]
#: ``progress(done, total)`` of one stage, both in the same unit.
StageProgress = Callable[[int, int], None]


def no_progress(*told: object) -> None:
    """Show nothing: a ``Progress`` and a ``StageProgress``."""


def begin(progress: Progress, stage: str) -> None:
    """Tell that ``stage`` begins, whose parts are not counted."""
    progress(stage, 0, 0)


def stage_of(progress: Progress, stage: str) -> StageProgress:
    """The part of ``progress`` that belongs to ``stage``, which begins now."""
    begin(progress, stage)
    return lambda done, total: progress(stage, done, total)


class _Beside:
    """Where work is shown that no caller can hand a ``Progress`` to."""

    def __init__(self) -> None:
        self.progress: Progress = no_progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.progress(stage, done, total)


#: The ``Progress`` of work that begins by itself within other work, as a compilation does.
beside: Final = _Beside()


@contextmanager
def shown_beside(progress: Progress) -> Iterator[None]:
    """While the block runs, have ``progress`` show what is told to ``beside``, from any thread."""
    beside.progress = progress
    try:
        yield
    finally:
        beside.progress = no_progress


def counted(progress: StageProgress, total: int) -> Callable[[int], None]:
    """A function that is called with what was done since its last call, by any thread, and tells ``progress``
    the sum."""
    done, turn = 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        with turn:
            done += count
            progress(done, total)

    return advance


def one_at_a_time(progress: Progress) -> Progress:
    """``progress`` for several threads: it is called by one of them at a time."""
    turn = Lock()

    def show(stage: str, done: int, total: int) -> None:
        with turn:
            progress(stage, done, total)

    return show
