"""The shipped model's own text: held out from training, made by its generator, worth measuring on."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from checkpoints import DEMO_BASE
from checkpoints.evaluation import (
    LIMITS,
    MOBILE_LIMITS,
    Limits,
    evaluation_text,
    write_evaluation_text,
)
from checkpoints.text import conversations, held_out_topics, training_documents
from converter.checkpoint.directory import Directory
from converter.checkpoint.documents import Documents
from converter.demo import DEMO, DEMO_MOBILE
from converter.filenames import EVALUATION_TEXT
from validation.evaluation import read_own

#: The topics that the shipped file was made of; another version of Python words some otherwise.
TOPICS = "4e733cb99d02e851598a7af2d1d7bbea7eca6e61905b68a7574f1d16034baffa"


@pytest.mark.parametrize(
    ("shipped", "limits"), [(DEMO, LIMITS), (DEMO_MOBILE, MOBILE_LIMITS)], ids=["demo", "mobile"]
)
def test_the_file_is_what_the_generator_writes(shipped: Path, limits: Limits, tmp_path: Path) -> None:
    told = "\0".join(f"{name}\0{text}" for name, text in held_out_topics().items())
    if hashlib.sha256(told.encode()).hexdigest() != TOPICS:
        pytest.skip("this Python words its help topics otherwise")
    write_evaluation_text(tmp_path, limits)
    assert (tmp_path / EVALUATION_TEXT).read_bytes() == (shipped / EVALUATION_TEXT).read_bytes()
    assert json.loads((tmp_path / EVALUATION_TEXT).read_text("utf-8")) == evaluation_text(limits)


def test_no_paragraph_of_it_was_trained_on() -> None:
    passages = read_own(Documents(Directory(DEMO)).settings(EVALUATION_TEXT)).passages
    documents = training_documents()
    trained = {part for text in documents.values() for part in text.split("\n\n")}
    chats = conversations(documents, random.Random(0))
    answers = {turn["content"] for chat in chats for turn in chat if turn["role"] == "assistant"}
    found = 0
    for passage in passages:
        answer = [content for role, content in passage.turns if role == "assistant"]
        assert not set(answer) & answers
        parts = {part for text in (passage.text, *answer) if text for part in text.split("\n\n")}
        assert not parts & trained
        found += len(parts)
    assert found > 40


def test_both_kinds_have_more_than_the_default_positions_need() -> None:
    passages = read_own(Documents(Directory(DEMO)).settings(EVALUATION_TEXT)).passages
    assert [passage.kind for passage in passages] == ["help topics"] * 4 + ["chats"] * 4
    assert {role for passage in passages for role, _ in passage.turns} == {"system", "user", "assistant"}
    size = (DEMO / EVALUATION_TEXT).stat().st_size
    assert 4_000 < size < 16_000
    assert not (DEMO_BASE / EVALUATION_TEXT).exists()
