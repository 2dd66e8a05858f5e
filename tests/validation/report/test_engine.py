"""How reports and the terminal tell what an engine made of an artifact."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from converter.cli.tables import print_report
from validation.report.coverage import gate_told
from validation.report.files import assemble
from validation.report.html import render_html
from validation.report.markdown import render_markdown
from validation.report.prompts import chats_told, template_told
from validation.report.texts import continuations, target_facts, visible

ENGINE: dict[str, Any] = {
    "name": "LiteRT-LM",
    "version": "0.18.1",
    "tokenizer": {"texts": 50, "equal": 50, "equal_fraction": 1.0, "difference": None},
    "greedy": {
        "prompts": 2,
        "tokens": 64,
        "characters": 30,
        "equal_characters": 20,
        "diverging": 1,
        "largest_gap": 0.25,
        "texts": [
            {
                "kind": "prose",
                "prompt": "It was a dark",
                "reference": " and <b>stormy</b> night",
                "engine": " and <b>stormy</b> night; the",
                "tokens": 32,
                "equal_characters": 24,
                "divergence": None,
            },
            {
                "kind": "chat",
                "prompt": "<|turn>user\nWhere",
                "reference": " is |it?",
                "engine": " is\tthat?",
                "tokens": 32,
                "equal_characters": 3,
                "divergence": {"token": 1, "character": 3, "reference": "▁|", "engine": "\t", "gap": 0.25},
            },
        ],
    },
    "scores": {"tokens": 452, "mean_abs": 0.0138, "max_abs": 0.1},
}


def report(engine: dict[str, Any] = ENGINE) -> dict[str, Any]:
    entry = {
        "artifact": "litert/m.litertlm",
        "passed": True,
        "runtime": {"name": "LiteRT", "version": "2.3.0", "engine": engine},
    }
    return assemble("m", {"path": "m", "format": "bf16-lattice"}, None, {"litert": entry})


def facts(engine: dict[str, Any]) -> dict[str, str]:
    return dict(target_facts(report(engine)["targets"]["litert"]))


def test_the_facts_say_how_far_the_engine_says_the_same() -> None:
    told = facts(ENGINE)
    assert told["engine"] == "LiteRT-LM 0.18.1"
    assert told["its tokens"] == "50 of 50 texts have the checkpoint's tokens"
    assert told["its text"] == (
        "1 of 2 greedy continuations are the reference's, 20 of 30 characters; where one is not,"
        " the reference holds the two tokens at most 0.25 nats apart"
    )
    assert "452 tokens are off by 0.0138 nats on average, 0.1 at most" in told["its scores"]


READ: dict[str, Any] = {
    "name": "onnxruntime-genai",
    "version": "0.18.0",
    "tokenizer": {
        "texts": 50,
        "equal": 49,
        "equal_fraction": 1.0,
        "difference": None,
        "runtime_limits": [{"text": "====", "token": 1, "checkpoint": [24, 346], "engine": [7]}],
        "hidden": {"tokens": 15, "wrong": [{"id": 3, "text": "<unk>"}]},
    },
    "prompts": {
        "chats": 6,
        "equal": 4,
        "equal_fraction": 5 / 6,
        "refused": 1,
        "left_out": 2,
        "difference": {"chat": "one turn", "token": 2, "checkpoint": [5], "engine": [6]},
        "runtime_limits": [{"chat": "quotes and code", "error": "the chat template fails: no items"}],
        "not_expressible": [{"chat": "a", "why": "tools"}, {"chat": "b", "why": "tools"}],
        "template": {
            "sha256": "0123456789abcdef" * 4,
            "artifact_sha256": "f" * 64,
            "engine": "an engine",
            "edits": ["parts become <texts>"],
        },
    },
    "ends": {
        "checkpoint": [1, 16],
        "engine": [3, 9, 16],
        "equal_fraction": 1 / 3,
        "missing": [{"id": 1, "text": "<eos>"}],
        "extra": [{"id": 3, "text": "<unk>"}],
        "by_rule": [{"id": 9, "text": "<|tool_response>"}],
        "lost": [],
    },
}


def test_a_template_that_is_missing_or_not_edited_is_told() -> None:
    template = {"sha256": "a" * 64, "artifact_sha256": "a" * 64, "engine": "it", "edits": []}
    assert template_told(template) == "SHA-256 aaaaaaaaaaaa…, run by it, the checkpoint's"
    assert template_told({**template, "kept": "x"}).endswith("the checkpoint's; not edited: x")
    without = {**template, "artifact_sha256": None}
    assert template_told(without) == "none in the artifact; the checkpoint's has SHA-256 aaaaaaaaaaaa…"


def test_the_terminal_counts_what_a_runtime_cannot_do_apart() -> None:
    assert chats_told(READ["prompts"]) == (
        "4 of 6 chats with its prompt (1 otherwise by the runtime itself, 2 more not expressible there)"
    )
    plain = {**READ["prompts"], "runtime_limits": [], "not_expressible": []}
    assert chats_told(plain) == "4 of 6 chats with its prompt"


def test_the_edit_and_both_hashes_stand_in_every_form_of_the_report() -> None:
    made = report(READ)
    for text in (render_markdown(made), render_html(made)):
        for told in ("ffffffffffff", "0123456789ab", "parts become", "2 more cannot be expressed there"):
            assert told in text
        assert "<texts>" not in text


def test_what_a_text_side_reads_otherwise_is_told_with_whose_doing_it_is() -> None:
    told = facts(READ)
    assert told["its tokens"] == (
        "49 of 50 texts have the checkpoint's tokens; onnxruntime-genai by itself: one with “====” has from"
        " token 2 on 7 for 24 346; 15 special tokens are hidden, wrong: “<unk>”"
    )
    assert told["its prompts"] == (
        "4 of 6 chats have the checkpoint's prompt, which refuses 1 more; of 2 more its template leaves out a"
        " part; one turn: from token 3 on 6 for 5; quotes and code, by itself: the chat template fails: no"
        " items; 2 more cannot be expressed there (tools)"
    )
    assert told["its template"] == (
        "SHA-256 ffffffffffff…, run by an engine; the checkpoint's has 0123456789ab…; edited, with the same"
        " prompts: parts become <texts>"
    )
    assert told["its ends"] == (
        "1 of 2 tokens that end an answer are the checkpoint's; missing: “<eos>”; not the checkpoint's:"
        " “<unk>”; always: “<|tool_response>”"
    )
    assert "its text" not in told
    assert continuations(report(READ)["targets"]["litert"]) == []


def test_the_pages_and_the_terminal_tell_of_a_text_side_without_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "&lt;|tool_response&gt;" in render_html(report(READ))
    assert "its prompts: 4 of 6 chats" in render_markdown(report(READ))
    print_report(report(READ), None)
    told = " ".join(capsys.readouterr().out.split())
    assert told.endswith(
        "run by onnxruntime-genai 0.18.0 text 49 of 50 texts with the checkpoint's tokens; 4 of 6 chats with"
        " its prompt (1 otherwise by the runtime itself, 2 more not expressible there)"
    )


def test_the_first_other_token_of_a_text_is_shown() -> None:
    other = copy.deepcopy(ENGINE)
    other["tokenizer"] |= {
        "equal": 49,
        "difference": {"text": "a\nb", "token": 1, "checkpoint": [24, 346], "engine": []},
    }
    assert facts(other)["its tokens"] == (
        "49 of 50 texts have the checkpoint's tokens; one with “a↵b” has from token 2 on none for 24 346"
    )


def test_texts_stand_beside_each_other_from_where_they_part() -> None:
    heading, same, parted = continuations(report()["targets"]["litert"])
    assert heading[2:4] == ("then the reference", "then LiteRT-LM")
    assert same[1:] == ("“ and <b>stormy</b> night”", "-", "-", "none")
    assert parted == (
        "chat: “<|turn>user↵Where”",
        "“ is”",
        "“ |it?”",
        "“⇥that?”",
        "token 2, character 4: “▁|” and “⇥”, 0.25 nats apart",
    )


def test_a_gap_that_the_texts_do_not_tell_is_said_so() -> None:
    unknown = copy.deepcopy(ENGINE)
    unknown["greedy"]["texts"][1]["divergence"]["gap"] = None
    row = continuations(report(unknown)["targets"]["litert"])[2]
    assert row[4].endswith("the texts do not tell how far apart")


def test_without_an_engine_there_is_no_table() -> None:
    assert continuations({"runtime": {"name": "llama.cpp", "version": "1"}}) == []
    assert continuations({}) == []


def test_the_pages_show_text_as_it_is() -> None:
    html, markdown = render_html(report()), render_markdown(report())
    assert "&lt;b&gt;stormy&lt;/b&gt;" in html
    assert "<b>stormy" not in html
    assert "Greedy text" in html
    line = next(line for line in markdown.splitlines() if line.startswith("| chat"))
    assert line.count("|") - line.count("\\|") == 6  # what the texts hold does not end a cell


def test_the_terminal_tells_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), None)
    told = " ".join(capsys.readouterr().out.split())
    assert "run by LiteRT-LM 0.18.1 text 50 of 50 texts with the checkpoint's tokens; 1 of 2 greedy" in told


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("short", "“short”", "“short”"),
        ("a" * 30 + "b" * 30, "“" + "a" * 30 + "b" * 18 + "…”", "“…" + "a" * 18 + "b" * 30 + "”"),
        ("\x07\u200b", "“\\u0007\\u200b”", "“\\u0007\\u200b”"),
    ],
)
def test_texts_are_shown_on_one_line_and_what_has_no_shape_as_an_escape(
    text: str, first: str, last: str
) -> None:
    assert visible(text) == first
    assert visible(text, last=True) == last


def test_the_share_of_equal_tokens_is_a_share() -> None:
    gate = {"name": "engine_same_tokens", "limit": 1.0, "value": 0.98, "passed": False, "note": "1 text"}
    assert gate_told(gate) == "FAILED: 98.00 %, at least 100 %; 1 text"
