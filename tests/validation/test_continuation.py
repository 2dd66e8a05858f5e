"""Where one text leaves another, which token it is, and how far apart the reference holds the two."""

from __future__ import annotations

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from validation.continuation import (
    Continuation,
    Vocabulary,
    characters,
    comparison,
    equal_characters,
    first_divergence,
    largest_gap,
)
from validation.runners import Answer

EOS = 1


@pytest.fixture(scope="module")
def tokens() -> tuple[str, ...]:
    return open_checkpoint(DEMO).tokenizer.tokens


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(open_checkpoint(DEMO).tokenizer, [EOS])


@pytest.fixture(scope="module")
def say(tokens: tuple[str, ...]):
    """``say("▁the", ...)``: the reference's continuation of these tokens, each with a logit of 3."""

    def make(*names: str) -> Continuation:
        ids = tuple(tokens.index(name) for name in names)
        texts = [""]
        for name in (name for name in names if name != tokens[EOS]):
            texts.append(texts[-1] + ("\ufffd" if name == "<0xE4>" else name.replace("▁", " ")))
        logits = np.zeros((len(ids), len(tokens)), np.float32)
        logits[range(len(ids)), ids] = 3
        return Continuation(ids, tuple(texts), logits)

    return make


def answer(*pieces: str, whole: bool = True) -> Answer:
    return Answer(pieces, (), whole)


def test_the_same_text_does_not_diverge_however_it_comes(say, vocabulary) -> None:
    reference = say("▁the", "▁of", "▁and")
    assert first_divergence(reference, answer(" the", " of", " and"), vocabulary) is None
    assert first_divergence(reference, answer(" the of and to", " the"), vocabulary) is None


def test_the_first_other_token_is_told_with_its_gap(say, vocabulary, tokens) -> None:
    reference = say("▁the", "▁of", "▁and")
    reference.logits[1, tokens.index("▁to")] = 2.75
    found = first_divergence(reference, answer(" the", " to", " and"), vocabulary)
    assert found is not None
    assert (found.token, found.character, found.reference, found.engine) == (1, 4, "▁of", "▁to")
    assert found.gap == 0.25


def test_a_text_in_one_piece_is_given_the_likeliest_token_that_it_may_begin_with(
    say, vocabulary, tokens
) -> None:
    reference = say("▁of", "▁and")
    reference.logits[0, tokens.index("▁t")] = 1
    reference.logits[0, tokens.index("▁to")] = 2
    reference.logits[0, tokens.index("▁the")] = 2.5
    found = first_divergence(reference, answer(" to the"), vocabulary)
    assert found is not None
    assert (found.engine, found.gap) == ("▁to", 1.0)


def test_an_engine_that_ends_early_has_said_a_token_that_ends(say, vocabulary, tokens) -> None:
    found = first_divergence(say("▁the", "▁of"), answer(" the"), vocabulary)
    assert found is not None
    assert (found.token, found.engine, found.gap) == (1, tokens[EOS], 3.0)


def test_an_engine_that_breaks_off_has_said_nothing_more(say, vocabulary) -> None:
    assert first_divergence(say("▁the", "▁of"), answer(" the", whole=False), vocabulary) is None
    assert first_divergence(say("▁the", "▁of"), answer(" to", whole=False), vocabulary) is not None


def test_an_engine_that_goes_on_where_the_reference_ends_diverges(say, vocabulary, tokens) -> None:
    reference = say("▁the", tokens[EOS])
    assert first_divergence(reference, answer(" the"), vocabulary) is None
    found = first_divergence(reference, answer(" the", " of"), vocabulary)
    assert found is not None
    assert (found.token, found.reference, found.engine) == (1, tokens[EOS], "▁of")


def test_behind_bytes_that_are_no_character_no_gap_is_told(say, vocabulary) -> None:
    reference = say("<0xE4>", "▁the", "▁of")
    found = first_divergence(reference, answer("\ufffd", " the", " and"), vocabulary)
    assert found is not None
    assert (found.token, found.gap) == (2, None)


def test_bytes_that_may_become_a_character_are_taken_back_to_the_first(say, vocabulary) -> None:
    found = first_divergence(say("▁the", "<0xE4>", "▁of"), answer(" the", " and"), vocabulary)
    assert found is not None
    assert (found.token, found.reference, found.engine) == (1, "<0xE4>", "▁and")


def test_the_largest_gap_is_that_of_the_texts_that_tell_one(say, vocabulary) -> None:
    def compared(*pieces: str) -> dict[str, object]:
        return comparison("prompt", "prose", say("▁the", "<0xE4>", "▁of"), answer(*pieces), vocabulary)

    assert largest_gap([compared(" the", "\ufffd", " of")]) == 0
    assert largest_gap([compared(" the", "\ufffd", " to")]) == 0
    assert largest_gap([compared(" the", "\ufffd", " to"), compared(" to")]) == 3


def test_a_comparison_shows_both_texts(say, vocabulary) -> None:
    found = comparison("a prompt", "code", say("▁the", "▁of"), answer(" the", " and", " to"), vocabulary)
    assert found | {"divergence": None} == {
        "kind": "code",
        "prompt": "a prompt",
        "reference": " the of",
        "engine": " the and to",
        "tokens": 2,
        "equal_characters": 5,
        "divergence": None,
    }
    assert found["divergence"]["character"] == 4


@pytest.mark.parametrize(
    ("first", "second", "count"), [("", "", 0), ("ab", "abc", 2), ("abc", "axc", 1), ("x", "y", 0)]
)
def test_equal_characters_are_counted_from_the_beginning(first: str, second: str, count: int) -> None:
    assert equal_characters(first, second) == equal_characters(second, first) == count


def test_characters_of_tokens_are_counted_once_for_all_their_bytes() -> None:
    assert characters([b" the", b"\xe4", b"\xbd", b"\xa0", b"\n", b"<|turn>"]) == 4 + 1 + 1 + 7
