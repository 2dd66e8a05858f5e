"""What "proven" covered, target by target, and what did not run."""

from __future__ import annotations

from typing import Any

import pytest

from converter.cli.tables import print_report
from support.page import Page
from support.reports import entry, gate, report, report_of
from validation.limits import KNOWN
from validation.report.coverage import coverage, gate_told, not_covered, verdict_told
from validation.report.html import render_html
from validation.report.markdown import render_markdown
from validation.report.summary import side_by_side


def rows(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {row.label: row.cells for row in coverage(content)}


def test_every_point_has_a_row_and_every_gate_stands_below_its_own() -> None:
    gates = [gate(name, 1.0, 1.0, True) for name in ("same_as_built", *KNOWN)]
    labels = [row.label for row in coverage(report(gates=gates))]
    points = [label for label in labels if label[0].isdigit()]
    assert [int(label[0]) for label in points] == [1, 2, 3, 4, 5, 6]
    below = {
        point: labels[labels.index(point) + 1 : labels.index(after) if after else None]
        for point, after in zip(points, [*points[1:], None], strict=True)
    }
    assert below["1. the bytes converted"] == []
    assert below["2. the weights"] == ["exact_fraction", "exact_values", "on_lattice_fraction"]
    assert below["3. as built"] == ["same_as_built"]
    assert below["4. without rounding"] == ["graph_kld"]
    assert {"mean_kld", "same_top_p", "engine_gap", "p999_kld"} <= set(below["5. as it ships"])
    assert below["6. text"] == ["engine_same_tokens", "engine_same_prompts", "engine_same_ends"]


def test_targets_stand_side_by_side() -> None:
    unrun = gate("graph_kld", 1e-7, None, None, note="did not run: too little room")
    content = report_of(
        {
            "gguf": entry(gates=[gate("mean_kld", 0.01, 0.001, True), unrun], passed=None),
            "onnx": entry(gates=[gate("mean_kld", 0.01, 0.5, False, note="why")], passed=False),
            "litert": {"artifact": "x", "passed": False, "error": "killed"},
        }
    )
    found = rows(content)
    assert found["5. as it ships"] == ("passed", "FAILED", "did not run: killed")
    assert found["4. without rounding"] == ("did not run", "no gate", "did not run: killed")
    assert found["mean_kld"] == (
        "passed: 0.001000, at most 0.010000",
        "FAILED: 0.5, at most 0.010000; why",
        "-",
    )
    assert found["graph_kld"] == ("did not run: too little room", "-", "-")
    assert ("gguf", "graph_kld: did not run: too little room") in not_covered(content)
    assert verdict_told(content) == "Failed: onnx: mean_kld; litert: could not be validated."


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Every gate of every target ran and passed."),
        (
            {"passed": None, "gates": [gate("graph_kld", 1.0, None, None, note="did not run: x")]},
            "Nothing failed. Did not run: gguf: graph_kld.",
        ),
        ({"passed": None, "gates": []}, "Converted, and not validated: nothing here is proven."),
        ({"passed": False, "gates": [gate("max_kld", 1.0, 2.0, False)]}, "Failed: gguf: max_kld."),
    ],
)
def test_the_verdict_is_explained_in_a_sentence(changes: dict[str, Any], told: str) -> None:
    content = report(**changes)
    assert verdict_told(content) == told
    assert told in Page(render_html(content)).text
    assert render_markdown(content).splitlines()[2] == told.replace("_", "\\_")


def test_the_verdict_of_the_whole_stands_on_top_of_the_pages() -> None:
    content = report(passed=None, gates=[gate("graph_kld", 1.0, None, None, note="did not run: x")])
    assert render_markdown(content).startswith("# gemma4-demo: not fully proven\n")
    assert '<h1>gemma4-demo: <span class="not">not fully proven</span></h1>' in render_html(content)


def test_what_was_not_validated_or_judged_says_so() -> None:
    found = rows(
        report(
            passed=None, gates=[], foreign=True, differences={"deciding": 1, "descriptive": 0, "listed": []}
        )
    )
    assert found["3. as built"] == ("not judged: another tool's artifact",)
    assert found["2. the weights"] == ("did not run: not validated",)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, "no gate: a directory, of which nobody lists digests"),
        (
            {"repo": "a/b", "files": {"read": 9, "compared": 9}},
            "passed: 9 of 9 files have the listed digests",
        ),
        ({"repo": "a/b", "files": {"read": 9, "compared": 7}}, "7 of 9 files have the listed digests"),
        ({"repo": "a/b"}, "not recorded"),
    ],
)
def test_the_source_is_covered_as_far_as_digests_were_compared(source: dict[str, Any], told: str) -> None:
    assert rows(report_of({"gguf": entry()}, **source))["1. the bytes converted"] == (told,)


def test_a_part_has_rows_of_its_own() -> None:
    parts = {"vision": {"files": ["v"], "gates": [gate("exact_values", 1.0, 0.5, False)], "passed": False}}
    found = rows(report(parts=parts))
    assert found["2. the weights"] == ("FAILED",)
    assert found["vision: exact_values"] == ("FAILED: 50.0000 %, at least 100 %",)


def test_what_the_proof_leaves_open_is_listed() -> None:
    prompts = {"not_expressible": [{}, {}], "runtime_limits": [{}]}
    engine = {"prompts": prompts, "tokenizer": {"runtime_limits": [{}]}}
    runtime = {"note": "no room", "graph": {"layers": [0, 1], "layers_of": 9}, "engine": engine}
    found = [text for _, text in not_covered({**report(), "targets": {"gguf": {"runtime": runtime}}})]
    assert found == [
        "no room",
        "without rounding, 2 of 9 layers ran",
        "not counted: 2 of the chats cannot be expressed in the runtime",
        "not counted: 1 of the chats become another prompt by the runtime itself",
        "not counted: 1 of the texts become other tokens by the runtime itself",
    ]


def test_a_gate_without_a_figure_tells_its_note() -> None:
    assert gate_told(gate("mean_kld", 0.1, None, False, note="NaN logits")) == "FAILED: NaN logits"
    assert gate_told(gate("mean_kld", None, None, None)) == "did not run"
    assert gate_told(gate("exact_values", 1.0, None, True, note="all in blocks")) == "passed: all in blocks"


def test_pages_and_terminal_show_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    content = report_of({"gguf": entry(), "onnx": entry(bytes=2)})
    print_report(content, None)
    terminal = capsys.readouterr().out.splitlines()
    markdown = render_markdown(content).splitlines()
    page = render_html(content)
    for label, *cells in side_by_side(content["targets"]):
        assert [label.strip(), *cells] in [re_split(line) for line in terminal]
        assert f"| {label.strip()} | {' | '.join(cells)} |" in markdown
        for cell in cells:
            assert cell in page


def re_split(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]
