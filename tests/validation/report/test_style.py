"""report.html at 390 pixels of width: what a telephone shows."""

from __future__ import annotations

import re
from typing import Final

from support.page import Page
from support.reports import baseline, report
from validation.report.html import render_html
from validation.report.style import STYLE
from validation.report.svg import WIDTH

#: Pixels of the page, of its margins (1rem on either side), and of the smallest text.
PAGE: Final = 390
MARGINS: Final = 2 * 16
SMALLEST: Final = 12


def test_no_text_is_smaller_than_12_pixels() -> None:
    sizes = [float(rem) * 16 for rem in re.findall(r"font-size: ([0-9.]+)rem", STYLE)]
    assert len(sizes) == STYLE.count("font-size:") >= 5
    assert min(sizes) >= SMALLEST
    (plot,) = re.findall(r"svg text \{[^}]*font: ([0-9.]+)px", STYLE)
    (least,) = re.findall(r"svg \{[^}]*min-width: ([0-9]+)px", STYLE)
    assert float(plot) * int(least) / WIDTH >= SMALLEST  # a plot is never narrower than that


def test_a_plot_is_seen_whole() -> None:
    (least,) = re.findall(r"svg \{[^}]*min-width: ([0-9]+)px", STYLE)
    assert int(least) <= PAGE - MARGINS


def test_what_may_be_wider_scrolls_in_a_box_that_keys_reach() -> None:
    html = render_html(report(baseline=baseline()))
    boxes = html.count('<div class="scroll" tabindex="0">')
    assert boxes == html.count("<table>") + html.count("<svg ") > 4
    assert ".scroll { overflow-x: auto; }" in STYLE
    assert re.search(r"th:first-child \{ position: sticky; left: 0; background", STYLE)
    assert ("name", "viewport") in Page(html).attributes


def test_there_are_colours_for_light_and_dark() -> None:
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    names = [set(re.findall(r"--[a-z]+", part)) for part in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--[a-z]+)\)", STYLE)) == names[0]
