"""Tables and facts laid out for the width of a terminal.

No cell is cut and no word is broken: a table that is too wide is printed in parts, each with the first column
again. What goes to another program is not wrapped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Columns of what is no terminal: no line is wrapped there.
_UNWRAPPED: Final = 1 << 14
#: Columns between two cells.
_GAP: Final = 2
#: The narrowest that text is wrapped to.
_LEAST: Final = 20
_COLOURS: Final = {"passed": "green", "proven": "green", "FAILED": "bold red", "not": "yellow"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Who reads no more is no error here: see ``console.results``."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output."""
    found = _Console(highlight=False)
    return found if found.is_terminal else _Console(highlight=False, width=_UNWRAPPED)


def line(text: str = "", style: str = "") -> None:
    """A line of text, wrapped at words."""
    out = console()
    for part in _wrapped(text, out.width):
        _print(out, Text(part, style))


def command(text: str) -> None:
    """A line that is to be copied: however long it is, no line end is put into it."""
    _print(console(), Text(text))


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Labels with what belongs to them, in two columns; the second is wrapped at words."""
    told, out = list(rows), console()
    indent = max((cell_len(label) for label, _ in told), default=0) + _GAP
    for label, text in told:
        for number, part in enumerate(_wrapped(text, max(_LEAST, out.width - indent))):
            shown = "" if number else label
            _print(out, Text(f"{shown}{' ' * (indent - cell_len(shown))}{part}"))


def fits(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table has room without being printed in parts."""
    widths = [max(map(cell_len, column)) for column in zip(heading, *rows, strict=True)]
    return sum(widths) + _GAP * (len(widths) - 1) <= console().width


def figures(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """A table whose cells are a line each. Columns of ``left`` are set to the left, others to the right. An
    empty line stands between its parts."""
    out = console()
    widths = [max(cell_len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
    for number, shown in enumerate(_parts(widths, out.width)):
        if number:
            line()
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column in shown:
            table.add_column(
                Text(heading[column]), justify="left" if column in left else "right", no_wrap=True
            )
        for row in rows:
            table.add_row(*(_cell(row[column]) for column in shown))
        whole = sum(widths[column] + _GAP for column in shown)
        for cells in out.render_lines(table, out.options.update(width=whole), pad=False):
            _print(out, Text.assemble(*((one.text, one.style or "") for one in cells)))


def _cell(text: str) -> Text:
    return Text(text, style=_COLOURS.get(text.split(" ")[0], ""))


def _parts(widths: Sequence[int], columns: int) -> list[list[int]]:
    """The columns of each part of a table: the first one, and as many others as there is room for."""
    parts, shown, taken = [], [0], widths[0]
    for column in range(1, len(widths)):
        needed = _GAP + widths[column]
        if len(shown) > 1 and taken + needed > columns:
            parts.append(shown)
            shown, taken = [0], widths[0]
        shown.append(column)
        taken += needed
    return [*parts, shown]


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) or [""]


def _print(out: Console, text: Text) -> None:
    """Print a line without spaces at its end, however long it is."""
    text.rstrip()
    out.print(text, no_wrap=True, overflow="ignore", crop=False)
