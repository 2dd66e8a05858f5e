"""The evaluation text: what ships, how it is cut, and who makes the token ids."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from converter.errors import UsageError, ValidationError
from converter.system.child import Worker
from validation.text import LONG, Encoding, Tokens, _shares, cut, digest, encode, read_passages

#: Two loops as long as the sandbox permits.
ENDLESS = "{% for a in range(99999) %}" * 2 + "{% set x = a %}" + "{% endfor %}" * 2


@pytest.fixture(scope="module")
def model(checkpoint_factory: Callable[..., Path]) -> Path:
    return checkpoint_factory("text")


@pytest.fixture(scope="module")
def shipped(model: Path, worker: Worker) -> Encoding:
    return encode(model, read_passages(), 1 << 20, worker)


def test_the_shipped_text_is_mixed_and_long_enough_for_512_positions() -> None:
    passages = read_passages()
    assert {passage.kind for passage in passages} == {"prose", "code", "languages", "chat"}
    text = "".join(passage.text for passage in passages)
    # at most four characters or so to a token of Gemma's tokenizer, and each kind must have its quarter
    assert len(text) > 4 * 1024
    for kind in ("prose", "code", "languages"):
        assert sum(len(passage.text) for passage in passages if passage.kind == kind) > 4 * 128 * 1.5
    for sample in (
        "é",
        "ß",
        "я",
        "λ",
        "ش",
        "ש",
        "ह",
        "ส",
        "春",
        "ひ",
        "한",
        "👩‍🚀",
        "🇨🇭",
        "\t",
        "    ",
        "0x55555555",
    ):
        assert sample in text


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(0, 2000))
def test_shares_are_even_up_to_what_there_is(available: list[int], total: int) -> None:
    shares = _shares(available, total)
    assert sum(shares) == min(total, sum(available))
    assert all(share <= limit for share, limit in zip(shares, available, strict=True))
    largest = max(shares)
    assert all(share >= min(limit, largest - 1) for share, limit in zip(shares, available, strict=True))


def test_sequences_hold_the_positions_and_every_kind_in_equal_parts(shipped: Encoding) -> None:
    tokens = cut(shipped, 512)
    assert tokens.positions == 512
    assert all(ids[0] == shipped.bos for ids in tokens.sequences)
    of_kind = dict.fromkeys(tokens.kinds, 0)
    for kind, ids in zip(tokens.kinds, tokens.sequences, strict=True):
        of_kind[kind] += len(ids)
    assert of_kind == {"prose": 128, "code": 128, "languages": 128, "chat": 128}


def test_ids_are_those_of_the_checkpoints_tokenizer_and_chat_template(model: Path, shipped: Encoding) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for passage, (kind, ids) in zip(read_passages(), shipped.passages, strict=True):
        turns = [{"role": role, "content": content} for role, content in passage.turns]
        text = tokenizer.apply_chat_template(turns, tokenize=False) if turns else passage.text
        assert kind == passage.kind
        assert tokenizer.decode([shipped.bos, *ids]).removeprefix("<bos>") == text.removeprefix("<bos>")
        assert shipped.bos not in ids


def test_the_last_positions_lie_beyond_the_sliding_window(shipped: Encoding) -> None:
    tokens = cut(shipped, 512, window=1024)
    assert tokens.positions == 512
    assert (len(tokens.sequences[-1]), tokens.firsts[-1]) == (1024 + 64, 1024 - 256)
    assert tokens.kinds[-1] == "beyond the window"
    assert tokens.sequences[-1][0] == shipped.bos
    assert set(tokens.firsts[:-1]) == {0}
    assert (tokens.beyond, tokens.whole.positions) == (slice(448, 512), 192)


@pytest.mark.parametrize(("window", "before", "computed"), [(64, 0, 576), (128, 64, 576), (512, 256, 768)])
def test_a_long_sequence_is_compared_at_positions_before_those_too(
    window: int, before: int, computed: int, shipped: Encoding
) -> None:
    """Its tokens are computed in any case; half of all positions are left to the passages on their own."""
    tokens = cut(shipped, 512, window=window)
    assert tokens.positions == 512
    assert tokens.firsts[-1] == window - before
    assert tokens.beyond == slice(448, 512)
    assert sum(map(len, tokens.sequences)) == computed
    assert set(tokens.kinds[:-1]) == {"prose", "code", "languages", "chat"}


@given(st.integers(8, 700), st.integers(1, 3000), st.integers(1, 6000))
def test_no_sequence_is_longer_than_the_context_unless_a_passage_is(
    positions: int, window: int, context: int
) -> None:
    tokens = cut(Encoding(2, (("a", (5, 6, 7) * 300), ("b", (8, 9) * 300))), positions, window, context)
    assert tokens.positions == positions
    long = list(zip(*long_ones(tokens), strict=True))
    assert all(0 < first <= window < len(ids) <= context for ids, first in long)
    assert all(len(ids) - window == tokens.far for ids, _ in long)
    assert bool(long) == bool(tokens.far) == (context > window)


def long_ones(tokens: Tokens) -> tuple[list[tuple[int, ...]], list[int]]:
    kept = [index for index, first in enumerate(tokens.firsts) if first]
    return [tokens.sequences[index] for index in kept], [tokens.firsts[index] for index in kept]


def test_a_model_without_a_window_has_no_sequence_beyond_one(shipped: Encoding) -> None:
    assert set(cut(shipped, 512).firsts) == {0}
    assert cut(shipped, 512).beyond == slice(512, 512)


def test_a_short_passage_leaves_its_positions_to_the_others() -> None:
    encoding = Encoding(2, (("a", (7,) * 9), ("b", (7,) * 500), ("b", (7,) * 5), ("c", (7,) * 500)))
    tokens = cut(encoding, 210)
    assert list(map(len, tokens.sequences)) == [10, 94, 6, 100]


def test_without_a_chat_template_there_is_no_chat(model: Path, tmp_path: Path, worker: Worker) -> None:
    _copy_tokenizer(model, tmp_path)
    encoding = encode(tmp_path, read_passages(), 1 << 20, worker)
    assert {kind for kind, _ in encoding.passages} == {"prose", "code", "languages"}
    assert cut(encoding, 300).positions == 300


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "template fails: roles must alternate"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "template fails: .*unsafe"),
        (ENDLESS, "template fails: it takes longer than 5 seconds"),
        ("{{ 'x' * 8000000000 }}", "template fails: it needs more than 1024 MB of memory"),
        ("{{ 'x' * 8000000 }}", "template makes 8000000 characters of one chat"),
    ],
)
def test_a_template_that_fails_leaves_its_sandbox_or_never_ends_is_one_line(
    template: str, message: str, model: Path, tmp_path: Path, worker: Worker
) -> None:
    _copy_tokenizer(model, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValidationError, match=message) as caught:
        encode(tmp_path, read_passages(), 1 << 20, worker)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_fills_the_memory_is_one_line(
    model: Path, tmp_path: Path, worker: Worker
) -> None:
    """For each of its ``num_labels``, transformers 5.23 makes two entries of a dictionary."""
    _copy_tokenizer(model, tmp_path)
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_labels": 10**9}))
    with pytest.raises(ValidationError, match="it needs more than 2048 MB of memory"):
        encode(tmp_path, read_passages(), 1 << 20, worker)


def test_a_users_text_is_cut_into_even_sequences(model: Path, tmp_path: Path, worker: Worker) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Ein Satz über Äpfel. " * 200, "utf-8")
    encoding = encode(model, read_passages(file), 1 << 20, worker)
    tokens = cut(encoding, 601)
    assert [len(ids) for ids in tokens.sequences] == [201, 200, 200]
    assert set(tokens.kinds) == {"text"}
    flat = [token for ids in tokens.sequences for token in ids[1:]]
    assert flat == list(encoding.passages[0][1][:598])


@pytest.mark.parametrize("passages", [1, 2])
def test_a_text_that_is_too_short_says_what_to_do(passages: int) -> None:
    encoding = Encoding(2, (("text", (5, 6, 7)),) * passages)
    with pytest.raises(UsageError, match=r"too few for 512 positions; give a longer one with --text"):
        cut(encoding, 512)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(UsageError, match="not UTF-8 at byte 0"):
        read_passages(tmp_path / "binary")
    with pytest.raises(UsageError, match="holds no text"):
        read_passages(tmp_path / "empty")
    with pytest.raises(UsageError, match="cannot be read"):
        read_passages(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a regular file"):
        read_passages(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"a" * 5_000_000)
    with pytest.raises(UsageError, match="larger than the 4194304 bytes"):
        read_passages(tmp_path / "large")


def test_ids_outside_the_vocabulary_are_refused(model: Path, worker: Worker) -> None:
    with pytest.raises(ValidationError, match="outside the vocabulary of 50"):
        encode(model, read_passages(), 50, worker)


def test_another_text_has_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Some text.")
    assert digest(read_passages()) == digest(read_passages())
    assert digest(read_passages()) != digest(read_passages(file))


def _copy_tokenizer(model: Path, directory: Path) -> None:
    """All that a tokenizer needs, but no chat template."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, directory / name)


@pytest.mark.parametrize(
    ("most", "firsts", "far"),
    [
        (60, (0, 0, 12), 8),
        (59, (1, 1, 13), 8),
        (24, (14, 9, 26), 8),
        (8, (19, 11, 35), 4),
        (2, (19, 11, 38), 1),
        (1, (19, 11, 39), 0),
    ],
)
def test_fewer_positions_are_the_last_of_each_sequence(most: int, firsts: tuple[int, ...], far: int) -> None:
    tokens = Tokens(
        (tuple(range(20)), tuple(range(12)), tuple(range(40))), ("a", "b", LONG), (0, 0, 12), far=8
    )
    fewer = tokens.fewer(most)
    assert (fewer.sequences, fewer.kinds) == (tokens.sequences, tokens.kinds)
    assert (fewer.firsts, fewer.far) == (firsts, far)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20, 59, 60, 1000])
def test_rows_of_fewer_positions_are_found_among_all(most: int) -> None:
    tokens = Tokens(
        (tuple(range(20)), tuple(range(12)), tuple(range(40))), ("a", "b", LONG), (0, 0, 12), far=8
    )

    def places(of: Tokens) -> list[tuple[int, int]]:
        return [
            (index, place)
            for index, (ids, first) in enumerate(zip(of.sequences, of.firsts, strict=True))
            for place in range(first, len(ids))
        ]

    fewer = tokens.fewer(most)
    assert fewer.positions <= max(most, len(tokens.sequences) + fewer.far)
    every = places(tokens)
    assert [every[row] for row in tokens.rows_of(fewer)] == places(fewer)
    assert places(fewer)[fewer.beyond] == places(fewer)[len(places(fewer)) - fewer.far :]
    assert set(places(fewer)[fewer.beyond]) <= set(every[tokens.beyond])
