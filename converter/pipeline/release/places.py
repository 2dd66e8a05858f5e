"""On which line of a TOML file a key stands: its parser does not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

#: A key's path: names of tables and keys, and numbers of tables in a list.
Path = tuple[str | int, ...]

_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_NAMES: Final = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_TABLE: Final = re.compile(rf"\s*(\[\[?)\s*({_NAMES})\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(rf"\s*({_NAMES})\s*=")
_QUOTES: Final = ('"""', "'''")


def lines_of(text: str) -> Mapping[Path, int]:
    """The line, from 1, of every table and key that begins one; ``text`` is valid TOML."""
    found: dict[Path, int] = {}
    table: list[str | int] = []
    counts: dict[Path, int] = {}
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if line.count(quote) % 2 else quote
            continue
        if header := _TABLE.match(line):
            table = _resolved(_parts(header[2]), counts, new=header[1] == "[[")
            _note(found, table, number)
        elif key := _KEY.match(line):
            _note(found, [*table, *_parts(key[1])], number)
        quote = next((one for one in _QUOTES if line.count(one) % 2), "")
    return found


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """The line of a key, or of the nearest table that it is in; ``None`` if that is the whole file."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _parts(names: str) -> list[str]:
    return [one.strip("\"'") for one in re.findall(_NAME, names)]


def _resolved(names: Sequence[str], counts: dict[Path, int], *, new: bool) -> list[str | int]:
    """The path of a table, with the numbers of those in lists."""
    path: list[str | int] = []
    for index, name in enumerate(names):
        path.append(name)
        if new and index == len(names) - 1:
            counts[tuple(path)] = counts.get(tuple(path), 0) + 1
        if tuple(path) in counts:
            path.append(counts[tuple(path)] - 1)
    return path


def _note(found: dict[Path, int], path: Sequence[str | int], number: int) -> None:
    for end in range(1, len(path) + 1):
        found.setdefault(tuple(path[:end]), number)
