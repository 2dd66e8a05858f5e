"""How far a long piece of work is, for whoever shows it.

Work that has several stages takes a ``Progress`` and names the stage each time. Work that is one stage takes
the part of that stage, a ``StageProgress``, which ``stage_of`` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

#: ``progress(stage, done, total)``: a stage's name, how much of it is done and how much there is. The unit
#: depends on the stage.
Progress = Callable[[str, int, int], None]
#: ``progress(done, total)`` of one stage, both in the same unit.
StageProgress = Callable[[int, int], None]


def no_progress(*told: object) -> None:
    """Show nothing: a ``Progress`` and a ``StageProgress``."""


def stage_of(progress: Progress, stage: str) -> StageProgress:
    """The part of ``progress`` that belongs to ``stage``."""
    return lambda done, total: progress(stage, done, total)


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
