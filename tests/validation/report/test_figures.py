"""One form for each figure."""

from __future__ import annotations

import pytest

from validation.report.figures import bits, distance, divergence, number, perplexity, rate, share
from validation.report.texts import gate_value


def test_only_what_is_whole_reads_as_100_percent() -> None:
    assert share(1.0) == rate(1.0) == "100 %"
    assert share(1 - 1e-9) == "99.9999 %"
    assert rate(1 - 1e-9) == "99.99 %"
    assert share(0.29) == "29.0000 %"
    assert rate(0.57) == "57.00 %"
    assert share(None) == rate(None) == "-"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"), (6.456e-10, "6.5e-10"), (9.9e-6, "9.9e-06"), (0.0000607, "0.000061"),
        (0.0123456, "0.012346"), (0.53119, "0.5312"), (12.3456, "12.35"), (None, "not finite"),
    ],
)  # fmt: skip
def test_a_divergence_has_digits_where_they_say_something(value: float | None, told: str) -> None:
    assert divergence(value) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(100.1, "+0.10 %"), (99.0, "-1.00 %"), (100.004, "0.00 %"), (99.996, "0.00 %"), (1000.0, "+900 %"),
     (None, "not finite")],
)  # fmt: skip
def test_a_perplexity_is_told_as_its_distance_from_the_reference(value: float | None, told: str) -> None:
    assert distance(value, 100.0) == told


def test_other_figures() -> None:
    assert perplexity(7.60412) == "7.604"
    assert perplexity(12345.6) == "12,346"
    assert perplexity(None) == number(None) == "not finite"
    assert distance(1.0, None) == "not finite"
    assert number(0.0012345678) == "0.001235"
    assert bits(4.5678) == "4.57"
    assert bits(None) == "-"


@pytest.mark.parametrize(
    ("gate", "value", "told"),
    [("exact_fraction", 0.5, "50.0000 %"), ("same_top_p", 0.5, "50.00 %"), ("graph_kld", 1e-9, "1.0e-09"),
     ("same_as_built", 3, "3"), ("mean_kld", None, "none")],
)  # fmt: skip
def test_a_gate_has_the_form_of_its_figure(gate: str, value: float | None, told: str) -> None:
    assert gate_value(gate, value) == told
