"""Exactness of weights that a checkpoint stores as codes and scales: in float32, codes and scales apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice, LatticeRows, Weight
from targets.target import StoredTensor
from validation.exactness import NAN_ULP, TensorExactness, _compare_rows, _finish, scale_errors

ROWS, COLUMNS = 512, 256
RANDOM = np.random.default_rng(7)
CODES = RANDOM.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)
SCALES = RANDOM.uniform(0.001, 0.1, (ROWS, 1)).astype(np.float32)

Floats = NDArray[np.float32]


def weight(scales: Floats = SCALES) -> Weight:
    """A matrix of 4-bit codes with a float32 scale for each row."""
    narrow = scales.astype(np.float16).astype(np.float32) == scales
    status = np.where(narrow, EXACT, NEEDS_F32_SCALE).astype(np.uint8)
    return Weight(
        "w.weight",
        "w",
        (ROWS, COLUMNS),
        "I4",
        lambda start, stop: CODES[start:stop] * scales[start:stop],
        Lattice(4, 0),
        lambda start, stop: LatticeRows(CODES[start:stop], scales[start:stop], status[start:stop]),
    )


def measured(stored: Floats, rule: Floats | None = None, of: Weight | None = None) -> TensorExactness:
    """An artifact with these values, where the target's rule makes ``rule`` (default: the same)."""
    one, ruled = of or weight(), stored if rule is None else rule
    tensor = StoredTensor(
        one.name,
        "w",
        "t",
        one.shape,
        0,
        lambda start, stop: stored[start:stop],
        lambda start, stop: ruled[start:stop],
    )
    return _finish(one, tensor, _compare_rows(one, tensor, 0, ROWS))


def test_codes_and_float32_scales_are_exact() -> None:
    found = measured(CODES * SCALES)
    assert (found.exact_blocks, found.equal_codes, found.max_ulp) == (ROWS, ROWS, 0)
    assert (found.max_scale_error, found.rms_error) == (0, 0)


def test_rows_whose_scale_is_rounded_to_float16_are_not_exact_though_most_are_in_bfloat16() -> None:
    narrow = SCALES.astype(np.float16).astype(np.float32)
    stored = CODES * narrow
    found = measured(stored)
    held = int(np.count_nonzero(narrow == SCALES))
    assert (found.exact_blocks, found.equal_codes) == (held, ROWS)
    assert (found.not_representable, found.wrong) == (ROWS - held, 0)
    relative = np.abs(narrow.astype(np.float64) / SCALES - 1).max()
    assert found.max_scale_error == pytest.approx(relative, rel=1e-6)
    assert 0 < found.max_scale_error <= 2.0**-11
    assert found.max_ulp > 1000
    in_bfloat16 = bf16_bits(stored) == bf16_bits(CODES * SCALES)
    assert in_bfloat16.all(axis=1).mean() < 1
    assert in_bfloat16.mean() > 0.8  # what a comparison in bfloat16 would call exact


def test_a_scale_one_step_of_float32_away_is_seen() -> None:
    scales = SCALES.copy()
    scales[3] = np.nextafter(scales[3], np.float32(1))
    found = measured(CODES * scales, rule=CODES * SCALES)
    assert (found.exact_blocks, found.equal_codes, found.wrong) == (ROWS - 1, ROWS, 1)
    assert 0 < found.max_scale_error < 2.0**-22
    assert (found.named[0].row, found.named[0].kind) == (3, "wrong")


def test_a_wrong_code_is_no_error_of_a_scale() -> None:
    stored = CODES * SCALES
    stored[5, 7] += SCALES[5, 0]
    found = measured(stored, rule=CODES * SCALES)
    assert (found.exact_blocks, found.equal_codes, found.wrong) == (ROWS - 1, ROWS - 1, 1)
    assert found.max_scale_error == 0
    # more steps than bfloat16 has numbers, and numbers all the same
    assert (found.precision, found.nan_values) == ("f32", 0)
    assert found.max_ulp > NAN_ULP["bf16"]


def test_values_that_are_no_numbers_are_counted_in_a_tensor() -> None:
    stored = CODES * SCALES
    stored[5, 7:10] = np.nan
    found = measured(stored, rule=CODES * SCALES)
    assert (found.nan_values, found.wrong, found.max_ulp) == (3, 1, NAN_ULP["f32"])


def test_a_scale_that_is_too_far_off_is_wrong_even_if_the_rule_makes_it() -> None:
    stored = CODES * (SCALES * np.float32(1.01))
    found = measured(stored)
    assert (found.wrong, found.equal_codes) == (ROWS, ROWS)
    assert found.max_scale_error == pytest.approx(0.01, rel=1e-3)


def test_small_scales_may_be_off_by_half_a_step_of_what_float16_has_there() -> None:
    """Which is as large as that of its smallest normal number. What the rule does not make is wrong still."""
    scales = SCALES.copy()
    scales[3], scales[4], scales[5] = 1e-6, 1e-8, 0
    narrow = scales.astype(np.float16).astype(np.float32)
    found = measured(CODES * narrow, of=weight(scales))
    assert (found.wrong, found.equal_codes) == (0, ROWS)
    assert found.max_scale_error == 1  # one became 0
    kinds = {block.row: block.kind for block in found.named}
    assert (kinds[3], kinds[4]) == ("scale below the type's range",) * 2
    assert 5 not in kinds
    other = narrow.copy()
    other[3] = 1.5e-6
    found = measured(CODES * other, of=weight(scales))
    assert (found.wrong, found.named[0].row) == (1, 3)


def test_numbers_of_the_checkpoint_are_still_compared_as_bfloat16() -> None:
    values = bf16_floats(bf16_bits(CODES * SCALES))
    stored = CODES * SCALES
    one = replace(weight(), stored="BF16", floats=lambda start, stop: values[start:stop])
    found = measured(stored, of=one)
    assert (found.exact_blocks, found.max_ulp) == (ROWS, 0)


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.integers(-128, 127), min_size=8, max_size=8),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.sampled_from([1.0, -1.0]),
    st.floats(-0.5, 0.5),
)
def test_one_factor_of_all_values_is_found(codes: list[int], scale: float, sign: float, error: float) -> None:
    own = np.array([[sign * scale]], np.float32)
    other = (own * (1 + error)).astype(np.float32)
    rows = LatticeRows(np.array([codes], np.int8), own, np.zeros((1, 1), np.uint8))
    (found,) = scale_errors(rows, (rows.codes * other).astype(np.float32)).reshape(-1)
    expected = abs(float(other[0, 0]) / float(own[0, 0]) - 1) if any(codes) else 0
    assert found == pytest.approx(expected, abs=2.0**-22)
