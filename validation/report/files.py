"""The report of a conversion: report.json for programs, report.md and report.html for people.

Everything is a function of the data in report.json, whose form ``docs`` describes: no time stamps, no host
names, no paths, so that the same results give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.filenames import REPORT, REPORT_HTML, REPORT_MARKDOWN
from validation.report.html import render_html
from validation.report.texts import (
    alternatives,
    comparison,
    continuations,
    differences,
    facts,
    gate_row,
    inexact_blocks,
    least_exact,
    target_facts,
    target_verdict,
)

#: Version of report.json; keys may be added without a new one.
SCHEMA = 1


def assemble(
    model: str,
    source: Mapping[str, object],
    reference: Mapping[str, object] | None,
    targets: Mapping[str, Mapping[str, object]],
    left_out: Sequence[Mapping[str, object]] = (),
) -> dict[str, Any]:
    """The content of report.json. ``reference`` is ``None`` where nothing was validated. ``left_out`` has
    ``part``, ``tensors`` and ``bytes`` of what is not converted."""
    return {
        "schema": SCHEMA,
        "model": model,
        "source": dict(source),
        "reference": None if reference is None else dict(reference),
        "left_out": [dict(part) for part in left_out],
        "targets": {name: dict(entry) for name, entry in targets.items()},
    }


def write(directory: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.html to ``directory``."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (directory / REPORT).write_text(_compact_numbers(text) + "\n", "utf-8")
    (directory / REPORT_MARKDOWN).write_text(render_markdown(report), "utf-8")
    (directory / REPORT_HTML).write_text(render_html(report), "utf-8")


def _compact_numbers(text: str) -> str:
    """Long lists of plain numbers on one line each."""
    return re.sub(
        r"\[\s+([-+0-9.eE,\snul]+?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text
    )


def render_markdown(report: Mapping[str, Any]) -> str:
    """report.md: the verdict, gates and figures of every target."""
    lines = [f"# {_markdown(report['model'])}", ""]
    lines += [f"- {label}: {_markdown(value)}" for label, value in facts(report)]
    for target, entry in report["targets"].items():
        lines += ["", f"## {_markdown(target)}: {target_verdict(entry)}", ""]
        lines += [f"- {label}: {_markdown(value)}" for label, value in target_facts(entry)]
        if entry.get("gates"):
            lines += ["", *_table(("gate", "limit", "value", "verdict"), map(gate_row, entry["gates"]))]
        if table := alternatives(entry):
            lines += ["", "Ways to run it:", "", *_table(table[0], table[1:])]
        if rows := comparison(entry):
            baseline = entry.get("baseline")
            heading = ("figure", "artifact", *([str(baseline["name"])] if baseline else []))
            lines += ["", *_table(heading, [tuple(cell for cell in row if cell is not None) for row in rows])]
        if texts := continuations(entry):
            lines += ["", "Greedy text:", "", *_table(texts[0], texts[1:])]
        if worst := least_exact(entry):
            lines += ["", "Tensors that are not exact, worst first:", ""]
            lines += _table(("tensor", "type", "exact blocks", "largest error, bf16 ulp"), worst)
        for title, found in (
            ("Blocks that are not exact, the first of each tensor:", inexact_blocks(entry)),
            ("Not as built from the checkpoint:", differences(entry)),
        ):
            if found:
                lines += ["", title, "", *_table(found[0], found[1:])]
    return "\n".join(lines) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [
        "| " + " | ".join(cell if index == 1 else _markdown(cell) for cell in line) + " |"
        for index, line in enumerate(lines)
    ]


def _markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line, whatever a model or a tensor is called."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", flat)
