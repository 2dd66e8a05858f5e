"""Regular expressions written by strangers, searched in bounded time.

Python's own engine backtracks, and a short expression (``(a+)+$``) keeps it busy for years. Here an
expression is parsed by Python's parser and matched by sets of positions: for every part of the expression,
from the set of positions at which it may end follows the set at which it may begin. A set is an integer
with a bit for each position. That takes a step for each part, and one for each round of a repetition, and
``Work`` counts the steps. What was captured is not told, so an expression that depends on it is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, Final

#: Longest expression that is parsed.
_LONGEST: Final = 4096
_DEEPEST: Final = 64
_CATEGORIES: Final[dict[Any, Callable[[str], bool]]] = {
    _constants.CATEGORY_DIGIT: str.isdecimal,
    _constants.CATEGORY_NOT_DIGIT: lambda one: not one.isdecimal(),
    _constants.CATEGORY_SPACE: str.isspace,
    _constants.CATEGORY_NOT_SPACE: lambda one: not one.isspace(),
    _constants.CATEGORY_WORD: lambda one: one.isalnum() or one == "_",
    _constants.CATEGORY_NOT_WORD: lambda one: not (one.isalnum() or one == "_"),
}


class Work:
    """How many steps searches may still take together, about a quarter of a microsecond each."""

    __slots__ = ("_left",)

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Take ``steps``; raises ``TimeoutError`` where they are more than there are left."""
        self._left -= steps
        if self._left < 0:
            raise TimeoutError("takes too long to match")


class Searched:
    """A text that several expressions are searched in, and the steps that there are for it."""

    __slots__ = ("everywhere", "places", "text", "work")

    def __init__(self, text: str, work: Work) -> None:
        work.spend(len(text))
        self.text = text
        self.work = work
        #: Every position, the one behind the last character too.
        self.everywhere = (2 << len(text)) - 1
        #: Positions of every character that occurs.
        self.places: dict[str, int] = {}
        for place, one in enumerate(text):
            self.places[one] = self.places.get(one, 0) | 1 << place

    def spend(self) -> None:
        """Count one step, which takes as long as the set is wide."""
        self.work.spend(1 + (len(self.text) >> 6))


#: ``starts(text, ends)``: where a part of an expression may begin so that it ends at one of ``ends``.
_Part = Callable[[Searched, int], int]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed expression."""

    source: str
    _starts: _Part

    def leftmost(self, text: Searched) -> int | None:
        """Where the leftmost match begins, as ``re.search`` finds it; ``None`` without a match. Raises
        ``TimeoutError``."""
        found = self._starts(text, text.everywhere)
        return (found & -found).bit_length() - 1 if found else None

    def reaches(self, text: Searched, ends: Iterable[int]) -> bool:
        """Whether a match from the beginning may end at one of ``ends``. Raises ``TimeoutError``."""
        return bool(self._starts(text, sum(1 << end for end in ends)) & 1)


def parse_pattern(source: str) -> Pattern:
    """Parse an expression in Python's syntax.

    Raises ``ValueError`` that says why: it is not valid, too long, or has what cannot be matched so
    (backreferences, conditions, named groups, flags, possessive repetitions and atomic groups).
    """
    if len(source) > _LONGEST:
        raise ValueError(f"has {len(source)} characters, more than {_LONGEST}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = _parser.parse(source)
    except (re.error, OverflowError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if parsed.state.flags != re.UNICODE:
        raise ValueError("sets flags, which are not read")
    if parsed.state.groupdict:
        raise ValueError("names a group, which is not read")
    return Pattern(source, _sequence(parsed, 0))


def _sequence(items: Any, depth: int) -> _Part:
    if depth > _DEEPEST:
        raise ValueError("is nested too deeply")
    parts: list[_Part] = []
    word = ""
    for kind, value in reversed(list(items)):
        if kind is _constants.LITERAL:
            word += chr(value)
            continue
        parts += [_literals(word)] if word else []
        parts.append(_part(kind, value, depth + 1))
        word = ""
    parts += [_literals(word)] if word else []

    def starts(text: Searched, ends: int) -> int:
        for part in parts:
            if not ends:
                break
            ends = part(text, ends)
        return ends

    return starts


def _part(kind: Any, value: Any, depth: int) -> _Part:
    if kind is _constants.NOT_LITERAL:
        return _characters(chr(value).__ne__)
    if kind is _constants.ANY:
        return _characters("\n".__ne__)
    if kind is _constants.IN:
        return _characters(_class(value))
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        least, most, body = value
        return _repetition(least, most, _sequence(body, depth))
    if kind is _constants.BRANCH:
        return _branches([_sequence(one, depth) for one in value[1]])
    if kind is _constants.SUBPATTERN:
        _, added, removed, body = value
        if added or removed:
            raise ValueError("sets flags, which are not read")
        return _sequence(body, depth)
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT):
        direction, body = value
        return _look(body, direction < 0, kind is _constants.ASSERT_NOT, depth)
    if kind is _constants.AT:
        return _anchor(value)
    if kind is getattr(_constants, "FAILURE", None):  # ``(?!)``
        return lambda text, ends: 0
    raise ValueError(f"has {str(kind).lower()}, which is not read")


def _class(items: Any) -> Callable[[str], bool]:
    """What a class of characters takes (``[^a-z\\d]``)."""
    negated = any(kind is _constants.NEGATE for kind, _ in items)
    tests = [_member(kind, value) for kind, value in items if kind is not _constants.NEGATE]
    return lambda one: any(test(one) for test in tests) is not negated


def _member(kind: Any, value: Any) -> Callable[[str], bool]:
    if kind is _constants.LITERAL:
        return chr(value).__eq__
    if kind is _constants.RANGE:
        low, high = value
        return lambda one: low <= ord(one) <= high
    if kind is _constants.CATEGORY and value in _CATEGORIES:
        return _CATEGORIES[value]
    raise ValueError(f"has {str(kind).lower()} in a class, which is not read")


def _literals(word: str) -> _Part:
    """Characters that follow each other, the last one first."""

    def starts(text: Searched, ends: int) -> int:
        text.work.spend(len(word))
        places = text.places
        for character in word:
            ends = places.get(character, 0) & ends >> 1
            if not ends:
                break
        return ends

    return starts


def _characters(takes: Callable[[str], bool]) -> _Part:
    def starts(text: Searched, ends: int) -> int:
        found = 0
        for one, places in text.places.items():
            text.spend()
            if takes(one):
                found |= places
        return found & ends >> 1

    return starts


def _repetition(least: int, most: int, body: _Part) -> _Part:
    def starts(text: Searched, ends: int) -> int:
        for _ in range(least):
            text.spend()
            before, ends = ends, body(text, ends)
            if ends == before:  # and so after any further round
                break
        found = frontier = ends
        for _ in _rounds(most, least):
            if not frontier:
                break
            text.spend()
            frontier = body(text, frontier) & ~found
            found |= frontier
        return found

    return starts


def _rounds(most: int, least: int) -> Iterator[None]:
    """So many more rounds than ``least`` as a repetition may have: without end, where it has none."""
    count = least
    while most is _constants.MAXREPEAT or count < most:
        count += 1
        yield


def _branches(parts: list[_Part]) -> _Part:
    def starts(text: Searched, ends: int) -> int:
        found = 0
        for part in parts:
            text.spend()
            found |= part(text, ends)
        return found

    return starts


def _look(body: Any, behind: bool, negative: bool, depth: int) -> _Part:
    """What lies ahead of a position or behind it, or does not."""
    part = _sequence(body, depth)
    least, most = body.getwidth()
    if behind and least != most:
        raise ValueError("looks behind by a width that is not fixed")

    def starts(text: Searched, ends: int) -> int:
        text.spend()
        found = part(text, text.everywhere)
        if behind:
            found <<= least
        return ends & (~found if negative else found)

    return starts


def _anchor(where: Any) -> _Part:
    """Positions of the beginning, of the end, or of a word's."""

    def at(text: Searched) -> int:
        count = len(text.text)
        if where in (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING):
            return 1
        if where is _constants.AT_END_STRING:
            return 1 << count
        if where is _constants.AT_END:
            return 1 << count | (1 << count - 1 if text.text.endswith("\n") else 0)
        text.work.spend(count)
        words = [False, *map(_CATEGORIES[_constants.CATEGORY_WORD], text.text), False]
        edges = sum(1 << place for place in range(count + 1) if words[place] != words[place + 1])
        return edges if where is _constants.AT_BOUNDARY else text.everywhere & ~edges

    if where not in _ANCHORS:
        raise ValueError(f"has {str(where).lower()}, which is not read")

    def starts(text: Searched, ends: int) -> int:
        text.spend()
        return ends & at(text)

    return starts


_ANCHORS: Final = (
    _constants.AT_BEGINNING,
    _constants.AT_BEGINNING_STRING,
    _constants.AT_END,
    _constants.AT_END_STRING,
    _constants.AT_BOUNDARY,
    _constants.AT_NON_BOUNDARY,
)
