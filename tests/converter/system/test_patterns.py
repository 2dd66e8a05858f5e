"""Expressions of strangers: what Python's engine finds, in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.system.patterns import Searched, Work, parse_pattern

ATOMS = [
    *("a", "b", ".", "[ab]", "[^a]", r"\d", r"\W", "x1", r"\.", "^", "$", r"\Z", r"\b", "(?=a)", "(?!b)"),
    *("(?<=a)", "(?<!a.)", "", "(?!)"),
]


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
        st.tuples(inner, repeats).map(lambda parts: f"({parts[0]}){parts[1]}"),
        inner.map(lambda one: f"(?={one})"),
    )


EXPRESSIONS = st.recursive(st.sampled_from(ATOMS), joined, max_leaves=8)


def leftmost(expression: str, text: str, steps: int = 1_000_000) -> int | None:
    return parse_pattern(expression).leftmost(Searched(text, Work(steps)))


@given(EXPRESSIONS, st.text("aabx1.\n", min_size=1, max_size=9))
def test_the_leftmost_match_is_pythons(expression: str, text: str) -> None:
    found = re.search(expression, text)
    assert leftmost(expression, text) == (found.start() if found else None)


@given(EXPRESSIONS, st.text("aabx1.\n", min_size=1, max_size=9), st.integers(0, 9))
def test_a_match_from_the_beginning_to_an_end_is_pythons(expression: str, text: str, end: int) -> None:
    end = min(end, len(text))
    found = re.match(f"(?:{expression})(?<=^{'.' * end})", text, re.DOTALL)
    reached = parse_pattern(expression).reaches(Searched(text, Work(1_000_000)), [end])
    assert reached == (found is not None)


@pytest.mark.parametrize(
    "expression", ["(a+)+$", "(a|a)*$", "(a*)*(a*)*$", r"(\w+\s?)*$", "a?" * 30 + "a" * 30]
)
def test_what_keeps_pythons_engine_busy_takes_no_time(expression: str) -> None:
    begin = time.monotonic()
    leftmost(expression, "a" * 60 + "!")
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("expression", ["(?:(?:a|b)*c?)*$", "(?:[ab]?[bc]?){60000}x?"])
def test_what_takes_too_many_steps_is_given_up(expression: str) -> None:
    with pytest.raises(TimeoutError, match="too long"):
        leftmost(expression, "abc" * 30, 100)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(", "not a regular expression"),
        ("*a", "not a regular expression"),
        ("a{99999999999999999999}", "not a regular expression"),
        ("(?i)a", "flags"),
        ("(?i:a)", "flags"),
        ("(?P<one>a)", "names a group"),
        (r"(a)\1", "groupref"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("(?<=a*)b", "not fixed"),
        ("(" * 100 + ")" * 100, "too deeply"),
        ("a" * 5000, "more than"),
    ],
)
def test_what_is_not_matched_is_refused(expression: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_pattern(expression)
