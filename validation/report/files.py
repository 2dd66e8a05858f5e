"""The report of a conversion: report.json for programs, report.md and report.html for people.

Everything is a function of the data in report.json, whose form ``docs`` describes: no time stamps, no host
names, no paths, so that the same results give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter.filenames import REPORT, REPORT_HTML, REPORT_MARKDOWN
from validation.report.html import render_html
from validation.report.markdown import render_markdown

#: Version of report.json; keys may be added without a new one.
SCHEMA = 1


def assemble(
    model: str,
    source: Mapping[str, object],
    reference: Mapping[str, object] | None,
    targets: Mapping[str, Mapping[str, object]],
    left_out: Sequence[Mapping[str, object]] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """The content of report.json. ``reference`` is ``None`` where nothing was validated. ``left_out`` has
    ``part``, ``tensors`` and ``bytes`` of what is not converted. ``command`` is a command line that makes
    the same again."""
    return {
        "schema": SCHEMA,
        "tool": {"name": "qatconvert", "version": version("qatconvert")},
        "command": command,
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
