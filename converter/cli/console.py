"""Progress bars and warnings on standard error, tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from converter.names import one_line
from converter.system.progress import Progress, no_progress


def warn(line: str) -> None:
    """One line of warning on standard error."""
    click.echo(f"qatconvert: warning: {one_line(line)}", err=True)


def fail(line: str) -> None:
    """One line on standard error about what went wrong without ending the command."""
    click.echo(f"qatconvert: {one_line(line)}", err=True)


@contextmanager
def results() -> Iterator[None]:
    """Print results within the block. A reader of standard output that wants no more, as ``head`` does, ends
    the printing and nothing else: the command's status tells what it did."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes what is left on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """A progress callback that draws one bar per stage, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<28}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
