"""The picture of README: how far a real model moves from its reference, kept exactly and rounded naively.

    python benchmarks/pictures.py [--directory docs/pictures]

It is drawn from what ``real_gemma.py`` recorded, once for light pages and once for dark ones: a picture in a
page of Markdown cannot ask the page for its colours. Bars begin at zero and share one linear axis. The
picture is as wide as a telephone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from real_gemma import FILES, RECORD, SCALES

from validation.report.svg import WIDTH, linear_axis

DIRECTORY = Path(__file__).parents[1] / "docs" / "pictures"
#: Ink, quiet ink, ground, and the colours of the artifact and the baseline: those of report.html.
COLOURS = {
    "light": ("#1c1f23", "#555d66", "#ffffff", "#0b5cad", "#b34700"),
    "dark": ("#e6e8ea", "#a9b1ba", "#15181b", "#6cb2ff", "#ff9a52"),
}
#: Pixels to the left of the bars, to their right (for the figures), and for one bar.
LEFT, RIGHT, BAR = 84, 56, 13
TITLE = "What conversion costs Gemma 3 270M"
LEGEND = "Mean KL divergence from the checkpoint; less is better"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text that begins at ``x``."""
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{mark}>{escape(words)}</text>'


def bar(y: float, value: float, width: float, style: str) -> list[str]:
    """A bar from zero, with its figure behind it."""
    figure = text(LEFT + width + 5, y + BAR - 2, f"{value:.4f}", "figure")
    return [f'<rect class="{style}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}"/>', figure]


def body(record: Mapping[str, Any]) -> Iterator[str]:
    """The parts, from the top, with the height as the last."""
    measured = record["measured"]
    largest = max(one[which]["mean_kld"] for one in measured for which in ("artifact", "baseline"))
    axis = linear_axis(largest, (), 0, WIDTH - LEFT - RIGHT)
    yield text(6, 18, TITLE, "title")
    yield text(6, 36, LEGEND)
    for x, style, words in ((6, "a", "codes kept exactly"), (160, "b", "rounded naively to Q4_0")):
        yield f'<rect class="{style}" x="{x}" y="47" width="{BAR}" height="{BAR}"/>{text(x + 19, 58, words)}'
    top = 70
    for scheme, group in groupby(measured, key=lambda one: one["scheme"]):
        yield text(6, top + 14, f"scales {SCALES[scheme]}", "title")
        top += 22
        for one in group:
            yield text(6, top + BAR + 4, FILES[one["target"]])
            for which, style in (("artifact", "a"), ("baseline", "b")):
                value = one[which]["mean_kld"]
                yield from bar(top, value, axis(value), style)
                top += BAR + 1
            top += 7
    yield str(top + 4)


def picture(record: Mapping[str, Any], theme: str) -> str:
    """The SVG for pages of one theme."""
    *parts, height = body(record)
    ink, quiet, paper, artifact, baseline = COLOURS[theme]
    style = (
        f"text{{fill:{quiet};font:12.5px system-ui,sans-serif}}.title{{fill:{ink};font-weight:600}}"
        f".figure{{fill:{ink}}}.a{{fill:{artifact}}}.b{{fill:{baseline}}}"
    )
    told = "; ".join(
        f"scales {SCALES[one['scheme']]}, {FILES[one['target']]}: "
        f"{one['artifact']['mean_kld']:.4f} kept exactly, {one['baseline']['mean_kld']:.4f} rounded"
        for one in record["measured"]
    )
    return (
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(TITLE)}</title><desc>{escape(told)}</desc>'
        f'<style>{style}</style><rect width="{WIDTH}" height="{height}" fill="{paper}"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    given = parser.parse_args()
    record = json.loads(RECORD.read_text("utf-8"))
    given.directory.mkdir(parents=True, exist_ok=True)
    for theme in COLOURS:
        (given.directory / f"real-gemma-{theme}.svg").write_text(picture(record, theme), "utf-8")


if __name__ == "__main__":
    main()
