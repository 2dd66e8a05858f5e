"""Warnings and errors on standard error, results on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from converter.names import one_line

# Click would write UTF-8 to an output that says it takes ASCII alone, unless it is given that output.


def warn(line: str) -> None:
    """One line of warning on standard error."""
    click.echo(f"qatconvert: warning: {one_line(line)}", file=sys.stderr)


def fail(line: str) -> None:
    """One line on standard error about what went wrong without ending the command."""
    click.echo(f"qatconvert: {one_line(line)}", file=sys.stderr)


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
