"""Plots: each once with all targets in it, limits as labelled lines, series told apart by shape."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from support.reports import baseline, entry, gate, report, report_of, weights
from validation.report.plots import plots
from validation.report.svg import (
    WIDTH,
    Panel,
    Series,
    exactness_by_tensor,
    kld_by_position,
    kld_distribution,
    log_axis,
)


def test_each_plot_stands_once_with_every_target_in_it() -> None:
    limited = entry(gates=[gate("mean_kld", 0.5, 0.001, True), gate("max_kld", 2.0, 0.1, True)])
    found = list(plots(report_of({"gguf": entry(baseline=baseline()), "onnx": limited})))
    assert len(found) == 2
    for _, svg in found:
        texts = [one.text or "" for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]
        assert [text.partition(":")[0] for text in texts if ": " in text] == ["gguf", "onnx"]
        assert [text for text in texts if "≤" in text] == ["mean ≤ 0.010000", "mean ≤ 0.5", "maximum ≤ 2"]
        assert svg.count('<path class="limit"') == 1 + 3  # the legend's
        assert {"artifact", "naive-q4_0", "limit of a gate"} <= set(texts)


def test_a_limit_lies_where_its_axis_has_it() -> None:
    (_, svg), _ = plots(report(gates=[gate("mean_kld", 1.0, 0.001, True)]))
    place = re.search(r'<path class="limit" d="M52 ([0-9.]+)H', svg)
    assert place is not None
    top = re.search(r'<path class="grid" d="(?:M52 [0-9.]+H352.0|M52 [0-9.]+H352)+', svg)
    assert top is not None
    assert float(place[1]) == min(float(y) for y in re.findall(r"M52 ([0-9.]+)H", top[0]))


def test_exactness_is_plotted_where_something_is_not_exact() -> None:
    assert len(list(plots(report(baseline=baseline(3))))) == 2
    found = list(plots(report_of({"gguf": entry(), "onnx": entry(weights=weights(97))})))
    assert len(found) == 3
    assert "onnx, artifact: lowest 97.0000 %" in found[2][1]
    assert "gguf" not in found[2][1]


def test_nothing_is_plotted_where_nothing_was_measured() -> None:
    assert list(plots(report(weights=None, logits=None))) == []


def test_artifact_and_baseline_differ_by_shape() -> None:
    panel = Panel("gguf", Series("artifact", [1.0]), Series("naive", [1.0]))
    dots, crosses = re.findall(r'<path class="marks [ab]" d="M[0-9. ]+([^"]+)"', kld_by_position([panel]))[
        ::-1
    ]
    assert dots == "h0"
    assert "l4 4" in crosses


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [None, None], [1e-12, 3.0], [1e300, 1e-300, 0.0]])
def test_plots_hold_any_values(values: list[float | None]) -> None:
    spans = (("prose", len(values)),)
    panel = Panel("x", Series("artifact", values), Series("naive", values), (("mean", 0.5),), spans)
    for svg in (kld_by_position([panel]), kld_distribution([panel]), exactness_by_tensor([panel])):
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root[0].tag.endswith("title")
        assert "nan" not in svg
        assert "inf" not in svg


def test_everything_lies_within_the_plot() -> None:
    kinds = tuple((f"kind {number}", 40) for number in range(8))
    values: list[float | None] = [10.0 ** -(index % 9) for index in range(320)]
    panels = [Panel(name, Series("artifact", values), None, (("mean", 1e-4),), kinds) for name in ("a", "b")]
    for svg in (kld_by_position(panels), kld_distribution(panels)):
        root = ElementTree.fromstring(svg)
        height = float(root.attrib["viewBox"].split()[3])
        for one in root.iter():
            if one.tag.endswith("text"):
                assert 0 <= float(one.attrib["x"]) <= WIDTH
                assert 0 <= float(one.attrib["y"]) <= height
        for x, y in re.findall(r"[ML]([0-9.]+) ([0-9.]+)", svg):
            assert float(x) <= WIDTH
            assert float(y) <= height


def test_a_logarithmic_axis_holds_its_values_in_whole_decades() -> None:
    axis = log_axis([0.0, 2e-5, 0.3], 0, 100)
    assert (axis.low, axis.high) == (1e-5, 1.0)
    assert axis(0.0) == 0
    assert axis(1.0) == 100
    assert axis(1e-3) == pytest.approx(40)
