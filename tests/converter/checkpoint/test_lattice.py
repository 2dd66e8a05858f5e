"""Laws of lattice recovery: what was written as bf16(scale * code) comes back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint.lattice import bf16_bits, bf16_floats, recover
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE

pytestmark = pytest.mark.slow

F16_NORMAL = (2.0**-14, 65504.0)
codes_in_block = st.lists(st.integers(-8, 7), min_size=32, max_size=32)
few_codes = st.lists(st.integers(-8, 7), min_size=1, max_size=3).flatmap(
    lambda pool: st.lists(st.sampled_from(pool), min_size=32, max_size=32)
)
# Bit patterns of every positive bfloat16 within float16's normal range, eightfold still below its maximum.
bf16_scales = st.integers(0x3880, 0x45FF).map(lambda pattern: float(bf16_floats(np.uint16([pattern]))[0]))
signs = st.sampled_from([1.0, -1.0])


def block(codes: list[int], scale: float) -> np.ndarray:
    """Bit patterns ``[1, 32]`` of bf16(scale * code), the product in float32 as training does it."""
    return bf16_bits((np.float32(scale) * np.array(codes, np.float32)).astype(np.float32))[None, :]


def dequantised(rows, scales=None) -> np.ndarray:
    scales = rows.scales if scales is None else scales
    return bf16_bits(np.repeat(scales, 32, axis=1) * rows.codes.astype(np.float32))


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return bool((bf16_floats(left) == bf16_floats(right)).all())


def ordinal(bits: np.ndarray) -> np.ndarray:
    """Integers that step by one from each bfloat16 to the next; both zeros are 0."""
    magnitude = (bits & 0x7FFF).astype(int)
    return np.where(bits & 0x8000, -magnitude, magnitude)


@given(st.one_of(codes_in_block, few_codes), bf16_scales, signs)
@settings(max_examples=2000, deadline=None)
def test_a_bf16_scale_in_the_normal_range_of_f16_is_recovered_exactly(codes, scale, sign):
    bits = block(codes, sign * scale)
    rows = recover(bits)
    assert rows.status[0, 0] == EXACT
    assert rows.scales[0, 0] == np.float16(rows.scales[0, 0])
    assert rows.codes.min() >= -8
    assert rows.codes.max() <= 7
    assert same(dequantised(rows), bits)


@given(codes_in_block, bf16_scales)
@settings(max_examples=500, deadline=None)
def test_trained_codes_without_a_common_divisor_come_back_as_they_were(codes, scale):
    codes[:2] = [7, 5]
    rows = recover(block(codes, scale))
    assert rows.codes[0].tolist() == codes
    assert rows.scales[0, 0] > 0


@given(st.one_of(codes_in_block, few_codes), bf16_scales, signs)
@settings(max_examples=1000, deadline=None)
def test_a_scale_is_negative_only_where_a_positive_one_would_need_code_8(codes, scale, sign):
    bits = block(codes, sign * scale)
    rows = recover(bits)
    if rows.scales[0, 0] < 0:
        assert rows.codes.min() == -8
        assert np.gcd.reduce(rows.codes[0].astype(int)) == 1


@given(codes_in_block, st.floats(2.0**-13, 4000.0, width=32), signs)
@settings(max_examples=1000, deadline=None)
def test_an_f32_scale_is_recovered_and_costs_at_most_one_ulp_in_f16(codes, scale, sign):
    bits = block(codes, sign * scale)
    rows = recover(bits)
    assert rows.status[0, 0] in (EXACT, NEEDS_F32_SCALE)
    assert same(dequantised(rows), bits)
    narrow = dequantised(rows, rows.scales.astype(np.float16).astype(np.float32))
    assert np.abs(ordinal(narrow) - ordinal(bits)).max() <= 1


@given(codes_in_block, st.floats(2.0**-13, 4000.0, width=32))
@settings(max_examples=150, deadline=None)
def test_a_block_is_exact_in_f16_wherever_any_f16_scale_is(codes, scale):
    bits = block(codes, scale)
    values = bf16_floats(bits)[0]
    rows = recover(bits)
    largest = np.abs(values).max()
    exists = largest == 0
    for code in range(1, 9):
        near = np.float16(largest / code)
        around = (near.view(np.uint16).astype(int) + np.arange(-24, 25)).clip(1, 0x7BFF).astype(np.uint16)
        for candidate in around.view(np.float16).astype(np.float32):
            for signed in (candidate, -candidate):
                guess = np.rint(values / signed)
                if guess.min() >= -8 and guess.max() <= 7:
                    exists |= same(bf16_bits((signed * guess).astype(np.float32)), bits[0])
    assert (rows.status[0, 0] == EXACT) == exists


@given(st.lists(st.integers(0, 0x7F7F), min_size=32, max_size=32), st.lists(signs, min_size=32, max_size=32))
@settings(max_examples=500, deadline=None)
def test_status_never_claims_more_than_the_codes_reproduce(patterns, directions):
    bits = np.array([patterns], np.uint16) | (np.array([directions]) < 0).astype(np.uint16) << 15
    rows = recover(bits.astype(np.uint16))
    with np.errstate(over="ignore"):
        if rows.status[0, 0] != OFF_LATTICE:
            assert same(dequantised(rows), bits)


def trained(scheme: str, rng: np.random.Generator, bf16_scale: bool = True) -> np.ndarray:
    """512 x 256 fake-quantised Gaussian weights, as bit patterns."""
    weights = (rng.standard_normal((512 * 8, 32)) * 0.02).astype(np.float32)
    peak = np.abs(weights).max(axis=1, keepdims=True)
    extremum = np.take_along_axis(weights, np.abs(weights).argmax(axis=1, keepdims=True), axis=1)
    scale = {
        "max7": peak / 7,
        "max8": peak / 8,
        "extremum8": extremum / -8,
        "learned": peak / rng.uniform(3.5, 8.5, peak.shape),
    }[scheme].astype(np.float32)
    if bf16_scale:
        scale = bf16_floats(bf16_bits(scale))
    codes = np.clip(np.rint(weights / scale), -8, 7)
    return bf16_bits((scale * codes).astype(np.float32)).reshape(512, 256)


@pytest.mark.parametrize("scheme", ["max7", "max8", "extremum8", "learned"])
def test_every_block_of_a_trained_scheme_is_exact(scheme):
    bits = trained(scheme, np.random.default_rng(5))
    bits[3, 32:64] = 0
    bits[4, :32] = 0x8000
    rows = recover(bits)
    assert (rows.status == EXACT).all()
    assert same(dequantised(rows), bits)
    assert rows.scales[3, 1] == 0
    if scheme != "extremum8":
        assert (rows.scales >= 0).all()


@pytest.mark.parametrize("scheme", ["max7", "max8", "extremum8", "learned"])
def test_f32_scales_are_mostly_exact_and_never_off_the_lattice(scheme):
    rows = recover(trained(scheme, np.random.default_rng(6), bf16_scale=False))
    assert (rows.status != OFF_LATTICE).all()
    assert (rows.status == EXACT).mean() > 0.9


def test_latent_weights_lie_on_no_lattice():
    rng = np.random.default_rng(7)
    bits = bf16_bits((rng.standard_normal((64, 256)) * 0.02).astype(np.float32))
    rows = recover(bits)
    assert (rows.status == OFF_LATTICE).all()
    # What is stored for such a block is still the nearest lattice: about the error of rounding to 4 bits.
    error = bf16_floats(dequantised(rows)) - bf16_floats(bits)
    assert np.sqrt((error**2).mean() / (bf16_floats(bits) ** 2).mean()) < 0.09


def test_the_result_does_not_depend_on_how_rows_are_cut():
    bits = trained("learned", np.random.default_rng(8))
    whole = recover(bits)
    for row in range(0, 512, 37):
        part = recover(bits[row : row + 1])
        assert (part.codes == whole.codes[row]).all()
        assert (part.scales == whole.scales[row]).all()


@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_values_that_are_not_finite_are_refused_with_their_place(pattern):
    bits = np.zeros((3, 64), np.uint16)
    bits[2, 40] = pattern
    with pytest.raises(ValueError, match=r"row 2 .* block 1"):
        recover(bits)


def test_columns_must_divide_into_blocks():
    with pytest.raises(ValueError, match="33 columns"):
        recover(np.zeros((1, 33), np.uint16))
