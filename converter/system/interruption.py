"""Signals that end the program: Ctrl-C, and SIGTERM, by which a machine or a pipeline stops it.

The first one is raised as an exception in the main thread, so that all that is half-written is removed on the
way out. A second one must not interrupt that: it waits while work goes on that has to be whole
(``deferred``), and for some seconds anyway.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

#: Signals that are handled, with the exit status of each by the shell's rule, 128 and the number.
STATUSES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}
#: Seconds after a signal in which another one changes nothing: the first is at work.
_PATIENCE: Final = 10.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end; ``status`` is the exit status that tells which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = STATUSES.get(signal.Signals(number), 128 + number)


class _Handler:
    """What the process was sent, and whether it may be raised now."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: int | None = None
        self._raised = float("-inf")

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._waiting = self._waiting or number
        elif time.monotonic() - self._raised > _PATIENCE:
            self._raise(number)

    def _raise(self, number: int) -> None:
        self._raised = time.monotonic()
        raise Interrupted(number)

    def enter(self) -> None:
        self._depth += 1

    def leave(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self._waiting is not None:
            number, self._waiting = self._waiting, None
            self(number, None)


_handler = _Handler()
#: What blocks that go on have to undo at their end, the last one first.
_to_undo: dict[object, Callable[[], object]] = {}


def install() -> None:
    """Have the signals of ``STATUSES`` raised as ``Interrupted`` from now on. One that was ignored when the
    process was started (as a shell does for jobs in the background) stays ignored."""
    for number in STATUSES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handler)


def finish() -> None:
    """Undo what a signal kept from being undone, and let no further one change how the program ends. The
    program's status is settled. The interpreter, on its way out, would give a handler of ours back to the
    system's default, which kills."""
    for number in STATUSES:
        signal.signal(number, signal.SIG_IGN)
    while _to_undo:
        _, undo = _to_undo.popitem()
        undo()


def undone_later(step: Callable[..., object], *arguments: object) -> Callable[[], None]:
    """``step(*arguments)`` to be called once, at the end of a block, by what is returned; no signal cuts it
    short. If one comes between the block and the call, which no statement of Python excludes, ``finish``
    calls it."""
    key = object()

    def undo() -> None:
        with deferred():
            if (found := _to_undo.pop(key, None)) is not None:
                found()

    _to_undo[key] = partial(step, *arguments)
    return undo


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait until the block is done: for short work that has to be whole. Without ``install``, and
    outside the main thread, where no signal is raised, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _handler.enter()
    try:
        yield
    finally:
        _handler.leave()
