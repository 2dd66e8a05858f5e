"""report.html: one file that needs nothing else and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from validation.report.figures import share
from validation.report.svg import Series, exactness_by_tensor, kld_by_position, kld_distribution
from validation.report.texts import (
    alternatives,
    comparison,
    continuations,
    differences,
    facts,
    gate_row,
    inexact_blocks,
    target_facts,
    target_verdict,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #ffffff; --quiet: #5b636d; --rule: #d5d9de;
  --band: #f2f4f6; --a: #0b5cad; --b: #b34700; --good: #19703b; --bad: #b3161b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #15181b; --quiet: #a3abb4;
  --rule: #3a4148; --band: #1d2226; --a: #6cb2ff; --b: #ff9a52; --good: #6fd394; --bad: #ff8b87; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-top: 1px solid var(--rule); padding-top: 1rem; }
dl { display: grid; grid-template-columns: minmax(6rem, 9rem) minmax(0, 1fr); gap: .15rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
.passed { color: var(--good); font-weight: 600; } .FAILED { color: var(--bad); font-weight: 600; }
.not, .did { color: var(--bad); font-weight: 600; }
figure { margin: 1.5rem 0; } figcaption { color: var(--quiet); } 
svg { width: 100%; min-width: 40rem; height: auto; display: block; }
svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; } svg .kind { font-size: 11px; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; } .axis { stroke: var(--quiet); fill: none; }
.band { fill: var(--band); } .marks, .line { fill: none; }
.marks.a { stroke-width: 4; stroke-linecap: round; }
.marks.b { stroke-width: 1; } .line { stroke-width: 2; } .line.b { stroke-dasharray: 6 3; }
.a { stroke: var(--a); } .b { stroke: var(--b); } summary { cursor: pointer; }
"""


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one HTML page: no external resources, every name escaped."""
    title = escape(f"{report['model']}: conversion report")
    spans = _spans(report.get("reference"))
    sections = "".join(
        _section(name, entry, _spans(entry["reference"]) if "reference" in entry else spans)
        for name, entry in report["targets"].items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(str(report['model']))}</h1>\n{_list(facts(report))}{sections}</main>\n</body>\n</html>\n"
    )


def _spans(reference: Mapping[str, Any] | None) -> list[tuple[str, int]]:
    return [(one["kind"], one["positions"]) for one in (reference or {}).get("sequences", ())]


def _section(target: str, entry: Mapping[str, Any], spans: Sequence[tuple[str, int]]) -> str:
    word = target_verdict(entry)
    parts = [
        f'<section>\n<h2>{escape(target)}: <span class="{word.split()[0]}">{word}</span></h2>\n',
        _list(target_facts(entry)),
    ]
    if entry.get("gates"):
        parts.append(_table("Gates", ("gate", "limit", "value", "verdict"), map(gate_row, entry["gates"])))
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
    parts += [_plots(entry, spans), _tensors(entry), "</section>\n"]
    return "".join(parts)


def _plots(entry: Mapping[str, Any], spans: Sequence[tuple[str, int]]) -> str:
    baseline = entry.get("baseline") or {}
    both = [("artifact", "a", entry), *([(str(baseline["name"]), "b", baseline)] if baseline else [])]
    figures = []
    klds = [Series(name, style, one["logits"]["kld"]) for name, style, one in both[::-1] if one.get("logits")]
    if klds:
        figures.append(
            (
                "Divergence from the reference at every position; sequences are shaded in turn.",
                kld_by_position(klds, spans),
            )
        )
        figures.append(("Share of positions at or below a divergence.", kld_distribution(klds)))
    exactness = [
        Series(name, style, [t["exact_fraction"] for t in one["weights"]["per_tensor"] if t["lattice"]])
        for name, style, one in both[::-1]
        if one.get("weights")
    ]
    if any(one.values for one in exactness):
        names = [t["name"] for t in entry["weights"]["per_tensor"] if t["lattice"]]
        caption = (
            "Share of blocks that reproduce the checkpoint bit for bit, for every tensor on the lattice."
        )
        figures.append((caption, exactness_by_tensor(exactness, names)))
    return "".join(
        f'<figure>\n<div class="scroll" tabindex="0">{svg}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
        for caption, svg in figures
    )


def _tensors(entry: Mapping[str, Any]) -> str:
    tensors = (entry.get("weights") or {}).get("per_tensor")
    if not tensors:
        return ""
    others = ((entry.get("baseline") or {}).get("weights") or {}).get("per_tensor")
    heading = [
        "tensor",
        "stored as",
        "type",
        "exact",
        "largest error, bf16 ulp",
        "RMS error before rounding to bf16",
    ]
    rows = []
    for index, tensor in enumerate(tensors):
        error = tensor["rms_error"]
        row = [tensor["name"], tensor["stored_as"], tensor["format"], share(tensor["exact_fraction"])]
        row += [str(tensor["max_ulp"]), "-" if error is None else f"{error:.2e}"]
        rows.append([*row, share(others[index]["exact_fraction"])] if others else row)
    if others:
        heading.append(f"exact in {entry['baseline']['name']}")
    table = _table("Blocks of lattice tensors, values of others", heading, rows, numbers=range(3, 7))
    return f"<details>\n<summary>All {len(tensors)} tensors</summary>\n{table}</details>\n"


def _list(items: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>\n" for label, value in items)
    return f"<dl>\n{cells}</dl>\n"


def _table(
    caption: str, heading: Sequence[str], rows: Iterable[Sequence[str]], numbers: range = range(1, 3)
) -> str:
    def cell(tag: str, index: int, text: str, extra: str = "") -> str:
        number = ' class="n"' if index in numbers else ""
        return f"<{tag}{extra}{number}>{text}</{tag}>"

    head = "".join(cell("th", i, escape(text), ' scope="col"') for i, text in enumerate(heading))
    lines = []
    for row in rows:
        first = f'<th scope="row">{escape(row[0])}</th>'
        rest = "".join(cell("td", i, _verdict(text)) for i, text in enumerate(row[1:], 1))
        lines.append(f"<tr>{first}{rest}</tr>\n")
    return (
        f'<div class="scroll" tabindex="0"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def _verdict(text: str) -> str:
    word = text.split(":")[0]
    if word not in ("passed", "FAILED", "did not run"):
        return escape(text)
    return f'<span class="{word.split()[0]}">{escape(text)}</span>'
