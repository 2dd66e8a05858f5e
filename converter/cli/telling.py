"""What a command tells beside its results: the options for it, warnings, stages and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from converter.cli.console import warn
from converter.errors import UsageError
from converter.system.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Telling:
    """Where a command tells what it does."""

    progress: Progress
    #: Gets one line for each warning.
    warn: Callable[[str], None]


def telling_options(command: Command) -> Command:
    """How much a command tells: the arguments of ``told``."""
    for option in (
        click.option(
            "--log-file",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write what happens inside to FILE, behind an earlier log.",
        ),
        click.option("-v", "--verbose", count=True, help="Tell what happens inside; -vv tells more."),
        click.option("-q", "--quiet", is_flag=True, help="Only results and errors."),
    ):
        command = option(command)
    return command


@contextmanager
def told(quiet: bool, verbose: int, log_file: Path | None, apart: Path | None = None) -> Iterator[Telling]:
    """While the block runs, show on standard error what it tells, and log it.

    If ``quiet``, neither stages nor warnings are shown: an artifact's report has its warnings too. No log
    may lie in the directory ``apart``. Raises ``UsageError`` for what contradicts itself, and what ``logged``
    raises.
    """
    from converter.cli.logs import logged
    from converter.cli.stages import shown_stages

    source = click.get_current_context().get_parameter_source
    if quiet and verbose and source("quiet") is not source("verbose"):
        # what stands on the command line counts, and not the default that the environment gives
        quiet = source("quiet") is ParameterSource.COMMANDLINE
        verbose = 0 if quiet else verbose
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: leave out one of them")
    with logged(verbose, log_file, apart), shown_stages(quiet) as stages:
        yield Telling(stages, (lambda line: None) if quiet else warn)
