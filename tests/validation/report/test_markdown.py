"""report.md as GitHub renders it: every table is one, and names stay text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from support.reports import HOSTILE, baseline, entry, gate, report, report_of, weights
from validation.report.markdown import render_markdown


def tables(markdown: str) -> list[list[list[str]]]:
    """Rows of text cells of each table."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(text(tokens[index + 1]))
    return found


def text(inline: Token) -> str:
    return "".join(one.content for one in inline.children or ())


def kinds(markdown: str) -> set[str]:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return {one.type for token in tokens for one in (token, *(token.children or ()))}


@pytest.mark.parametrize("name", ["plain", HOSTILE, "a|b", "~~x~~ ![i](u) <https://a.b>", "\\", "x\\|y"])
def test_every_table_renders_with_as_many_cells_as_headings(name: str) -> None:
    failed = gate("mean_kld", 0.01, 0.5, False, note=name)
    content = report_of(
        {
            "gguf": entry(name, weights=weights(97, name), gates=[failed], passed=False, baseline=baseline()),
            "onnx": entry(gates=[gate("graph_kld", 1.0, None, None, note=name)], warnings=[name]),
        },
        name,
    )
    markdown = render_markdown(content)
    found = tables(markdown)
    assert len(found) == 2 + 1 + 1 + 1  # side by side, gates; figures of two; tensors that are not exact
    assert sum(line.startswith("| ") for line in markdown.splitlines()) == sum(len(one) + 1 for one in found)
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
    flat = " ".join(name.split())
    assert flat in found[-2][1][0] or any(flat in row[0] for table in found for row in table)


def test_names_stay_text() -> None:
    content = report(HOSTILE, HOSTILE, weights=weights(50, HOSTILE), warnings=["- x", "1. y", "http://a.b"])
    expected = {"html_inline", "html_block", "link_open", "image", "code_inline", "em_open", "s_open"}
    assert not kinds(render_markdown(content)) & expected
    first = MarkdownIt("commonmark").parse(render_markdown(content))[1]
    assert text(first) == f"{' '.join(HOSTILE.split())}: proven"


def test_a_whole_report_has_headings_in_order(demo_output: Any) -> None:
    content = json.loads((demo_output / "report.json").read_text("utf-8"))
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(content))
    headings = [
        (token.tag, text(tokens[index + 1]))
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    assert [tag for tag, _ in headings] == ["h1", *["h2"] * (len(headings) - 1)]
    assert [told for _, told in headings][1:3] == ["Targets", 'What "proven" covered']
    assert headings[-1] == ("h2", "Glossary")
