"""The stages of a command, which of them run and how far they are, and how they are shown.

On a terminal each running stage has a line that moves, and one line sums up those that are done. Elsewhere a
plain line tells that a stage begins, with the seconds since the command did.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Final

import click

from converter.names import one_line
from converter.system.amounts import amount
from converter.system.child import peak_bytes
from converter.system.progress import shown_beside

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_LOG: Final = logging.getLogger("qatconvert.stages")
#: Changes of the picture in a second.
_FRAMES: Final = 8
#: The narrowest bar that tells anything, and the widest.
_NARROWEST: Final = 6
_WIDEST: Final = 30


@dataclass
class Stage:
    """A stage that has begun."""

    name: str
    #: When it began, in seconds of the monotonic clock.
    begun: float
    #: The thread whose stage it is, ``None`` for work within another stage.
    thread: Thread | None
    #: How much is done and how much there is; no total is known as long as it is 0.
    done: int = 0
    total: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will be heard of it. The main thread's goes on until the next one begins, so
        that there is always one that moves."""
        counted = 0 < self.total <= self.done and self.thread is not main_thread()
        return counted or (self.thread is not None and not self.thread.is_alive())


class Stages:
    """A ``Progress`` that keeps account, for any threads. ``tell`` gets the name of each stage that
    begins."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = Lock()
        self._running: dict[str, Stage] = {}
        self._begun = time.monotonic()
        #: Names of the stages that are over.
        self.done: list[str] = []

    def __call__(self, name: str, done: int, total: int) -> None:
        """What a thread tells of its stage; see ``converter.system.progress.Progress``."""
        self._count(name, done, total, current_thread())

    def beside(self, name: str, done: int, total: int) -> None:
        """What is told of work within another stage, which goes on."""
        self._count(name, done, total, None)

    @property
    def seconds(self) -> float:
        """Since the first one could begin."""
        return time.monotonic() - self._begun

    def running(self) -> list[Stage]:
        """Those that are not over."""
        with self._lock:
            over = self._end([stage for stage in self._running.values() if stage.over])
            running = list(self._running.values())
        _log(over)
        return running

    def close(self) -> None:
        """Nothing more will be told."""
        with self._lock:
            over = self._end(list(self._running.values()))
        _log(over)

    def _count(self, name: str, done: int, total: int, thread: Thread | None) -> None:
        over: list[Stage] = []
        told = False
        with self._lock:
            stage = self._running.get(name)
            if stage is None:
                over += self._end(self._before(thread))
                stage = self._running[name] = Stage(name, time.monotonic(), thread)
                told = thread is not None or name not in self.done
            if total:
                stage.done, stage.total = done, total
            if stage.over:
                over += self._end([stage])
        # without the lock: whoever prints waits for the picture, and the picture for the lock
        _log(one for one in over if one is not stage)
        if told:
            _LOG.debug("%s: begins", name)
            self._tell(name)
        _log(one for one in over if one is stage)

    def _before(self, thread: Thread | None) -> list[Stage]:
        """The stages that are over because ``thread`` begins another one."""
        if thread is None:
            return []
        return [stage for stage in self._running.values() if stage.thread is thread or stage.over]

    def _end(self, stages: Sequence[Stage]) -> Sequence[Stage]:
        for stage in stages:
            del self._running[stage.name]
            if stage.name not in self.done:
                self.done.append(stage.name)
        return stages


def _log(over: Iterable[Stage]) -> None:
    for stage in over:
        seconds = time.monotonic() - stage.begun
        _LOG.info("%s: done after %.2f s; peak memory so far %s", stage.name, seconds, amount(peak_bytes()))


@contextmanager
def shown_stages(quiet: bool = False) -> Iterator[Stages]:
    """A ``Progress`` whose stages are shown on standard error, unless ``quiet``."""
    if quiet:
        with _kept(Stages(lambda name: None)) as stages:
            yield stages
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        with _kept(Stages(lambda name: _tell_line(stages, name))) as stages:
            yield stages
        return
    from rich.live import Live

    with _kept(Stages(lambda name: None)) as stages:
        picture = Picture(stages, console)
        with Live(
            get_renderable=picture, console=console, refresh_per_second=_FRAMES, transient=True
        ):  # fmt: skip
            yield stages
        stages.close()
        console.print(picture.summary())


@contextmanager
def _kept(stages: Stages) -> Iterator[Stages]:
    try:
        with shown_beside(stages.beside):
            yield stages
    finally:
        stages.close()


def _tell_line(stages: Stages, name: str) -> None:
    with suppress(OSError):  # who reads no more is no reason to end
        click.echo(f"[{stages.seconds:4.0f} s] {one_line(name)}", file=sys.stderr)


class Picture:
    """What a terminal shows: a line for all that is done, and one for each stage that runs."""

    def __init__(self, stages: Stages, console: Console) -> None:
        self._stages, self._console = stages, console
        unicode = console.encoding.lower().startswith("utf")
        self._spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if unicode else "|/-\\"
        self._full, self._empty = ("━", "─") if unicode else ("#", "-")
        self._more = "…" if unicode else "..."

    def __call__(self) -> RenderableType:
        """The lines as they are now."""
        from rich.console import Group

        running = self._stages.running()
        rows = [self._row(stage, max(len(one.name) for one in running)) for stage in running]
        return Group(*([self.summary()] if self._stages.done else []), *rows)

    def summary(self) -> RenderableType:
        """How many stages are done, how long that took, and as many of the last ones as there is room for."""
        from rich.text import Text

        done = self._stages.done
        line = f"{len(done)} done in {_clock(self._stages.seconds)}"
        told = ""
        for count in range(1, len(done) + 1):
            names = [self._more] if count < len(done) else []
            more = ": " + ", ".join((*names, *map(one_line, done[-count:])))
            if len(line) + len(more) > self._columns:
                break
            told = more
        return Text(line + told, style="dim", no_wrap=True, overflow="crop")

    @property
    def _columns(self) -> int:
        # some terminals go on to the next line once the last column is written
        return self._console.width - 1

    def _row(self, stage: Stage, longest: int) -> RenderableType:
        from rich.text import Text

        seconds = time.monotonic() - stage.begun
        share = min(stage.done / stage.total, 1.0) if stage.total else None
        figures = f" {share:4.0%}" if share is not None else ""
        end = f"{figures} {_clock(seconds)}"
        room = self._columns - len("s ") - len(end)
        name = one_line(stage.name)
        if len(name) > room:
            name = f"{name[: room - len(self._more)]}{self._more}"
        spinner = self._spinner[int(seconds * _FRAMES) % len(self._spinner)]
        width = min(room - longest - 1, _WIDEST)
        bar = ""
        if share is not None and width >= _NARROWEST:
            full = round(share * width)
            bar = f" {self._full * full}{self._empty * (width - full)}"
            name = name.ljust(longest)
        return Text.assemble(
            (f"{spinner} ", "cyan"), name, (bar, "green"), end, no_wrap=True, overflow="crop"
        )  # fmt: skip


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
