"""The shipped tokenizer: Gemma's conventions, every text there and back, and the chat format."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from checkpoints import DEMO_BASE
from checkpoints.vocabulary import BYTE_TOKENS, SPECIAL_TOKENS
from converter.demo import DEMO

HARD = (
    "The if statement is used for conditional execution.",
    "    if x == 1:\n\tprint('tab')\n\n\n\n\n        deep",
    "naïve café Ünïcödé ßtraße \u2013 “quotes” … ° e\u0301",
    "日本語の文章、中文文本\uff0c한국어",
    "🙂👩‍👩‍👧‍👦🇪🇺 ∑∞≠",
    "a  b   c    d          e",
    " leading and trailing ",
    "▁ is the mark itself",
    "\r\n windows \x00 and \x7f",
)


@pytest.fixture(scope="module")
def tokenizer(demo_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_checkpoint)


@pytest.mark.parametrize("text", HARD)
def test_hard_strings_come_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text.replace("▁", " ")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_every_text_without_special_tokens_comes_back(text: str) -> None:
    shipped = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = shipped.encode(text, add_special_tokens=False).ids
    assert shipped.decode(ids, skip_special_tokens=False) == text


def test_transformers_and_the_file_agree(tokenizer: PreTrainedTokenizerBase) -> None:
    shipped = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for text in HARD:
        assert tokenizer(text)["input_ids"] == shipped.encode(text).ids


def test_special_tokens_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in SPECIAL_TOKENS:
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"][1:-1] == [
            tokenizer.convert_tokens_to_ids(token)
        ]


def test_the_first_ids_are_gemmas(tokenizer: PreTrainedTokenizerBase) -> None:
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(first) == [0, 1, 2, 3, 4]


def test_pieces_hold_newlines_alone_and_no_word_boundary_inside() -> None:
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert set(BYTE_TOKENS) <= set(model["vocab"])
    for piece in model["vocab"]:
        assert "\n" not in piece or not piece.strip("\n"), f"{piece!r} would not survive llama.cpp"
        assert "▁" not in piece.lstrip("▁"), f"{piece!r} spans words"
    assert len(model["vocab"]) == len(set(model["vocab"].values())) == max(model["vocab"].values()) + 1


def test_merges_lead_to_every_piece() -> None:
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    made = {left + right for left, right in model["merges"]}
    pieces = set(model["vocab"]) - set(SPECIAL_TOKENS) - set(BYTE_TOKENS)
    assert {piece for piece in pieces if len(piece) > 1} == made


def test_turns_are_written_in_gemma_4s_form(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is a slice? "},
        {"role": "assistant", "content": "A part of a sequence."},
        {"role": "user", "content": [{"type": "text", "text": "And an index?"}]},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<bos><|turn>system\nBe brief.<turn|>\n"
        "<|turn>user\nWhat is a slice?<turn|>\n"
        "<|turn>model\nA part of a sequence.<turn|>\n"
        "<|turn>user\nAnd an index?<turn|>\n"
        "<|turn>model\n"
    )


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role: narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "x"}], tokenize=False)


def test_both_checkpoints_have_the_same_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (DEMO / name).read_bytes() == (DEMO_BASE / name).read_bytes()
