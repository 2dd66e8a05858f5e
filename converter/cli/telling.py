"""What a command tells beside its results: the options for it, warnings, stages and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from converter.cli.console import warn
from converter.system.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Telling:
    """Where a command tells what it does."""

    progress: Progress
    #: Gets one line for each warning.
    warn: Callable[[str], None]


def telling_options(command: Command) -> Command:
    """How much a command tells."""
    return click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")(command)


@contextmanager
def told(quiet: bool) -> Iterator[Telling]:
    """While the block runs, show on standard error what it tells. If ``quiet``, neither stages nor warnings
    are shown: reports have the warnings too."""
    from converter.cli.stages import shown_stages

    with shown_stages(quiet) as stages:
        yield Telling(stages, (lambda line: None) if quiet else warn)
