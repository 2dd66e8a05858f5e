"""report.html: one file that needs nothing else and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from validation.report.coverage import Row, coverage, not_covered, verdict_told
from validation.report.figures import share
from validation.report.glossary import ENTRIES, entry_of
from validation.report.plots import plots
from validation.report.style import STYLE
from validation.report.summary import measured_against, recovery_told, side_by_side
from validation.report.texts import (
    ULP,
    alternatives,
    comparison,
    continuations,
    differences,
    facts,
    inexact_blocks,
    report_verdict,
    target_facts,
    target_verdict,
    ulps,
)

#: Texts of cells that are coloured, by what comes before a colon.
_VERDICTS = ("passed", "FAILED", "did not run", "not fully proven", "not validated", "not judged")
#: Under the table of all tensors: how an exact tensor can have an error.
_TWO_ERRORS = (
    "Two errors of each tensor, against two things. The one in ulp is against the checkpoint's values, after "
    "both are rounded to the checkpoint's precision, which stands beside it: 0 is exact. The "
    "relative RMS error is against the same values before the artifact's are rounded: codes times scales are "
    "no bf16 numbers, so an exact tensor of a bf16 checkpoint has about 0.0015 there."
)


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one HTML page: no external resources, every name escaped."""
    title = escape(f"{report['model']}: conversion report")
    sections = "".join(_section(name, entry) for name, entry in report["targets"].items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_top(report)}{_coverage(report)}{_plots(report)}{sections}{_glossary()}</main>\n</body>\n</html>\n"
    )


def _top(report: Mapping[str, Any]) -> str:
    """The verdict, what the report is about, and the targets side by side."""
    word, targets = report_verdict(report), report["targets"]
    rows = list(side_by_side(targets))
    below = []
    if told := recovery_told(report):
        below.append(told)
    if told := measured_against(report):
        below.append(f"Figures are {told}.")
    against = "".join(f"<p>{escape(line)}</p>\n" for line in below)
    return (
        f'<h1>{escape(str(report["model"]))}: <span class="{word.split()[0]}">{word}</span></h1>\n'
        f"<p>{escape(verdict_told(report))}</p>\n{_list(facts(report))}"
        f"<h2>Targets</h2>\n"
        f"{_table('', ('figure', *targets), rows, numbers=range(1, len(targets) + 1))}{against}"
    )


def _coverage(report: Mapping[str, Any]) -> str:
    """What "proven" covered, and what is left open."""
    rows = "".join(map(_coverage_row, coverage(report)))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in report["targets"])
    left = not_covered(report)
    open_ = f"<h3>What it leaves open</h3>\n{_list(left)}" if left else ""
    return (
        '<h2>What "proven" covered</h2>\n<div class="scroll" tabindex="0"><table>\n'
        f'<thead><tr><th scope="col">{_term("gate")}</th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n{open_}"
    )


def _coverage_row(row: Row) -> str:
    cells = "".join(f'<td class="told">{_cell(cell)}</td>' for cell in row.cells)
    kind = "" if row.point is None else ' class="heading"'
    return f'<tr{kind}><th scope="row">{_term(row.label)}</th>{cells}</tr>\n'


def _plots(report: Mapping[str, Any]) -> str:
    figures = "".join(
        f'<figure>\n<div class="scroll" tabindex="0">{svg}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
        for caption, svg in plots(report)
    )
    return f'<h2>Plots</h2>\n<div class="plots">\n{figures}</div>\n' if figures else ""


def _section(target: str, entry: Mapping[str, Any]) -> str:
    word = target_verdict(entry)
    parts = [
        f'<section>\n<h2>{escape(target)}: <span class="{word.split()[0]}">{word}</span></h2>\n',
        _list(target_facts(entry)),
    ]
    if table := alternatives(entry):
        parts.append(_table("Ways to run it", table[0], table[1:], numbers=range(1, len(table[0]))))
    if rows := comparison(entry):
        baseline = entry.get("baseline")
        heading = ("figure", "artifact", *([str(baseline["name"])] if baseline else []))
        cells = [tuple(cell for cell in row if cell is not None) for row in rows]
        parts.append(_table("Figures", heading, cells, numbers=range(1, 3)))
    if texts := continuations(entry):
        parts.append(_table("Greedy text", texts[0], texts[1:], numbers=range(0)))
    if found := differences(entry):
        caption = "Not as built from the checkpoint"
        parts.append(_table(caption, found[0], found[1:], numbers=range(0)))
    if found := inexact_blocks(entry):
        caption = "Blocks that are not exact, the first of each tensor"
        parts.append(_table(caption, found[0], found[1:], numbers=range(1, 4)))
    return "".join([*parts, _tensors(entry), "</section>\n"])


def _tensors(entry: Mapping[str, Any]) -> str:
    tensors = (entry.get("weights") or {}).get("per_tensor")
    if not tensors:
        return ""
    others = ((entry.get("baseline") or {}).get("weights") or {}).get("per_tensor")
    heading = ["tensor", "stored as", "type", "exact blocks", ULP, "relative RMS error of codes x scales"]
    rows = []
    for index, tensor in enumerate(tensors):
        error = tensor["rms_error"]
        row = [tensor["name"], tensor["stored_as"], tensor["format"], share(tensor["exact_fraction"])]
        row += [ulps(tensor["max_ulp"], tensor), "-" if error is None else f"{error:.2e}"]
        rows.append([*row, share(others[index]["exact_fraction"])] if others else row)
    if others:
        heading.append(f"exact blocks of {entry['baseline']['name']}")
    table = _table("Blocks of lattice tensors, values of others", heading, rows, numbers=range(3, 7))
    return (
        f"<details>\n<summary>All {len(tensors)} tensors</summary>\n<p>{_TWO_ERRORS}</p>\n{table}</details>\n"
    )


def _glossary() -> str:
    entries = "".join(
        f'<dt id="{entry.anchor}">{escape(entry.term)}</dt><dd>{escape(entry.text)}</dd>\n'
        for entry in ENTRIES
    )
    return f'<h2>Glossary</h2>\n<dl class="glossary">\n{entries}</dl>\n'


def _term(label: str) -> str:
    """A label, linked to what explains it."""
    entry, text = entry_of(label), escape(label.strip())
    return text if entry is None else f'<a href="#{entry.anchor}">{text}</a>'


def _list(items: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{_term(label)}</dt><dd>{escape(value)}</dd>\n" for label, value in items)
    return f"<dl>\n{cells}</dl>\n"


def _table(
    caption: str, heading: Sequence[str], rows: Iterable[Sequence[str]], numbers: range = range(1, 3)
) -> str:
    """A table in a box that scrolls, with its caption above the box, where it is read without scrolling.
    Columns ``numbers`` are set to the right."""

    def cell(tag: str, index: int, text: str, extra: str = "") -> str:
        number = ' class="n"' if index in numbers else ""
        return f"<{tag}{extra}{number}>{text}</{tag}>"

    head = "".join(cell("th", i, _term(text), ' scope="col"') for i, text in enumerate(heading))
    lines = []
    for row in rows:
        indented = ' class="indented"' if row[0].startswith(" ") else ""
        first = f'<th scope="row"{indented}>{_term(row[0])}</th>'
        rest = "".join(cell("td", i, _cell(text)) for i, text in enumerate(row[1:], 1))
        lines.append(f"<tr>{first}{rest}</tr>\n")
    title = f"<h3>{escape(caption)}</h3>\n" if caption else ""
    return (
        f'{title}<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def _cell(text: str) -> str:
    """The text of a cell, its verdict coloured."""
    word, colon, rest = text.partition(":")
    if word not in _VERDICTS:
        return escape(text)
    return f'<span class="{word.split()[0]}">{word}</span>{colon}{escape(rest)}'
