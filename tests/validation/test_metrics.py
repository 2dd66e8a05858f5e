"""Laws and closed forms of the metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from converter.errors import ValidationError
from validation.metrics import LogitMetrics, compare, log_softmax

Logits = NDArray[np.float32]

shapes = st.tuples(st.integers(1, 6), st.integers(2, 40))
finite = st.floats(-60, 60, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Logits, Logits, NDArray[np.int64]]:
    shape = draw(shapes)
    p, q = (draw(arrays(np.float32, shape, elements=finite)) for _ in range(2))
    return p, q, draw(arrays(np.int64, shape[0], elements=st.integers(-1, shape[1] - 1)))


@given(pairs())
def test_divergence_is_never_negative(case: tuple[Logits, Logits, NDArray[np.int64]]) -> None:
    metrics = compare(*case)
    assert (metrics.kld >= 0).all()
    assert 0 <= metrics.mean_kld <= metrics.max_kld
    assert metrics.p999_kld <= metrics.max_kld


@given(pairs())
def test_a_distribution_does_not_diverge_from_itself(
    case: tuple[Logits, Logits, NDArray[np.int64]],
) -> None:
    p, _, tokens = case
    metrics = compare(p, p, tokens)
    assert metrics.max_kld == 0
    assert metrics.same_top_p == 1
    assert metrics.max_abs == 0
    assert np.array_equal(metrics.ppl, metrics.ppl_reference, equal_nan=True)


@given(pairs(), st.integers(-50, 50))
def test_a_constant_added_to_logits_changes_no_probability(
    case: tuple[Logits, Logits, NDArray[np.int64]], constant: int
) -> None:
    # on whole numbers the addition is exact
    p, q, tokens = np.rint(case[0]), np.rint(case[1]), case[2]
    before, after = compare(p, q, tokens), compare(p, q + np.float32(constant), tokens)
    assert after.kld == pytest.approx(before.kld, rel=1e-9, abs=1e-12)
    assert after.same_top_p == before.same_top_p
    assert after.ppl == pytest.approx(before.ppl, rel=1e-9, nan_ok=True)


@given(pairs())
def test_divergence_agrees_with_the_plain_sum(case: tuple[Logits, Logits, NDArray[np.int64]]) -> None:
    p, q, tokens = case
    expected = []
    for row_p, row_q in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
        log_p, log_q = log_softmax(row_p), log_softmax(row_q)
        expected.append(math.fsum(np.exp(log_p) * (log_p - log_q)))
    assert compare(p, q, tokens).kld == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_two_tokens_have_the_binary_divergence() -> None:
    # softmax (ln a, ln b) is (a, b) / (a + b): p = (3/4, 1/4), q = (1/2, 1/2)
    metrics = compare(_row(math.log(3), 0), _row(5, 5), np.array([1]))
    assert metrics.mean_kld == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-7)
    assert metrics.rms_delta_p == pytest.approx(0.25, rel=1e-6)
    assert metrics.ppl == pytest.approx(2, rel=1e-6)
    assert metrics.ppl_reference == pytest.approx(4, rel=1e-6)


def test_uniform_against_a_certain_prediction_is_far_but_finite() -> None:
    metrics = compare(_row(0, 0, 0, 0), _row(3000, 0, 0, 0), np.array([2]))
    assert metrics.mean_kld == pytest.approx(0.75 * 3000 - math.log(4), rel=1e-6)
    assert metrics.ppl == math.inf


def test_a_certain_reference_against_uniform_costs_the_logarithm_of_the_vocabulary() -> None:
    metrics = compare(_row(3000, 0, 0, 0), _row(0, 0, 0, 0), np.array([0]))
    assert metrics.mean_kld == pytest.approx(math.log(4), rel=1e-9)


def test_scaled_logits_have_the_gaussian_closed_form() -> None:
    # p and q are discretised normal distributions with variance 1/a and 1/b:
    # KL = (b/a - 1 - ln(b/a)) / 2
    x = np.linspace(-12, 12, 4001, dtype=np.float64)
    a, b = 1.0, 1.7
    p, q = (-0.5 * a * x**2).astype(np.float32)[None], (-0.5 * b * x**2).astype(np.float32)[None]
    assert compare(p, q, np.array([0])).mean_kld == pytest.approx((b / a - 1 - math.log(b / a)) / 2, rel=1e-5)


def test_small_divergences_do_not_drown_in_rounding() -> None:
    # for q = p + e, KL is Var_p(e) / 2 to first order; here 5e-13
    rng = np.random.default_rng(0)
    p = rng.normal(size=(1, 5000)) * 2
    e = rng.normal(size=(1, 5000)) * 1e-6
    metrics = compare(p.astype(np.float64), p + e, np.array([0]))  # type: ignore[arg-type]
    weights = np.exp(log_softmax(p[0]))
    variance = float(weights @ e[0] ** 2 - (weights @ e[0]) ** 2)
    assert metrics.mean_kld == pytest.approx(variance / 2, rel=1e-3)


def test_percentile_is_interpolated_between_positions() -> None:
    reference = np.zeros((3, 2), np.float32)
    candidate = np.array([[0, 0], [1, 0], [4, 0]], np.float32)
    metrics = compare(reference, candidate, np.array([-1, -1, -1]))
    low, high = np.sort(metrics.kld)[1:]
    assert metrics.p999_kld == pytest.approx(low + 0.998 * (high - low))


def test_positions_without_a_next_token_count_for_the_divergence_only() -> None:
    reference, candidate = np.zeros((2, 3), np.float32), np.array([[0, 0, 0], [9, 0, 0]], np.float32)
    metrics = compare(reference, candidate, np.array([1, -1]))
    assert metrics.max_kld > 1
    assert metrics.rms_delta_p == 0
    assert metrics.ppl == pytest.approx(3)
    assert math.isnan(compare(reference, candidate, np.array([-1, -1])).ppl)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["faulty", "faulty_reference"])
def test_a_logit_that_is_not_finite_makes_every_metric_nan(fault: float, side: str) -> None:
    good = np.ones((4, 5), np.float32)
    bad = good.copy()
    bad[2, 3] = fault
    metrics: LogitMetrics = compare(
        *((good, bad) if side == "faulty" else (bad, good)), np.zeros(4, np.int64)
    )
    assert getattr(metrics, side) == 1
    assert metrics.faulty + metrics.faulty_reference == 1
    for name in ("mean_kld", "p999_kld", "max_kld", "same_top_p", "rms_delta_p", "max_abs", "ppl"):
        assert math.isnan(getattr(metrics, name))
    assert np.isnan(metrics.kld).tolist() == [False, False, True, False]


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"shape \(2, 4\).*\(2, 5\)"):
        compare(np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValidationError, match="outside the vocabulary"):
        compare(np.zeros((1, 5), np.float32), np.zeros((1, 5), np.float32), np.array([5]))


def _row(*values: float) -> Logits:
    return np.array([values], np.float32)
