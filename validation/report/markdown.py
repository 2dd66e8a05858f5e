"""report.md: the report as Markdown, CommonMark with the tables of GitHub's dialect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from validation.report.coverage import coverage, not_covered, verdict_told
from validation.report.glossary import entries_of
from validation.report.summary import measured_against, recovery_told, side_by_side
from validation.report.texts import (
    ULP,
    alternatives,
    comparison,
    continuations,
    differences,
    facts,
    inexact_blocks,
    least_exact,
    report_verdict,
    target_facts,
    target_verdict,
)


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report, the verdict first: targets side by side, what was covered, each target, a glossary."""
    targets = report["targets"]
    rows, covered = list(side_by_side(targets)), coverage(report)
    lines = [f"# {text(report['model'])}: {report_verdict(report)}", "", text(verdict_told(report)), ""]
    lines += _facts(facts(report))
    lines += ["", "## Targets", "", *table(("figure", *targets), said_in_words(rows))]
    if told := recovery_told(report):
        lines += ["", text(told)]
    if told := measured_against(report):
        lines += ["", f"Figures are {text(told)}."]
    lines += ["", '## What "proven" covered', ""]
    lines += table(("gate", *targets), ((row.label, *row.cells) for row in covered))
    if left := not_covered(report):
        lines += ["", "What it leaves open:", "", *_facts(left)]
    for target, entry in targets.items():
        lines += ["", f"## {text(target)}: {target_verdict(entry)}", "", *_facts(target_facts(entry))]
        for title, heading, found in _tables(entry):
            lines += ["", f"{title}:", "", *table(heading, found)]
    lines += ["", "## Glossary", ""]
    labels = [row[0] for row in rows] + [row.label for row in covered]
    labels += [row[0] for entry in targets.values() for row in comparison(entry)]
    lines += [f"- **{text(entry.term)}**: {text(entry.text)}" for entry in entries_of(labels)]
    return "\n".join(lines) + "\n"


def said_in_words(rows: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Rows whose labels say in words what an indent says elsewhere."""
    for label, *cells in rows:
        yield (f"{label.strip()} of the baseline" if label.startswith(" ") else label, *cells)


def _tables(entry: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """The tables of a target: title, heading, rows."""
    if found := alternatives(entry):
        yield "Ways to run it", found[0], found[1:]
    if rows := comparison(entry):
        baseline = entry.get("baseline")
        heading = ("figure", "artifact", *([str(baseline["name"])] if baseline else []))
        yield "Figures", heading, [tuple(cell for cell in row if cell is not None) for row in rows]
    if found := continuations(entry):
        yield "Greedy text", found[0], found[1:]
    if worst := least_exact(entry):
        yield "Tensors that are not exact, worst first", ("tensor", "type", "exact blocks", ULP), worst
    if found := inexact_blocks(entry):
        yield "Blocks that are not exact, the first of each tensor", found[0], found[1:]
    if found := differences(entry):
        yield "Not as built from the checkpoint", found[0], found[1:]


def _facts(found: Iterable[tuple[str, str]]) -> list[str]:
    return [f"- {text(label)}: {text(value)}" for label, value in found]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return [
        "| " + " | ".join(cell if index == 1 else text(cell) for cell in line) + " |"
        for index, line in enumerate(lines)
    ]


def text(value: object) -> str:
    """Text that Markdown shows as it is, on one line, whatever a model or a tensor is called."""
    flat = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", flat)
