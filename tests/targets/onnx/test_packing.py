"""The bytes of codes, scales and numbers, judged by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from targets.onnx.packing import FROM_FLOATS, pack_codes, pack_scales

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6)).map(lambda shape: (shape[0], 32 * shape[1]))


@settings(deadline=None)  # the first call compiles
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int8, shape, elements=st.integers(-8, 7))))
def test_a_byte_holds_two_codes_plus_8_the_first_in_the_low_nibble(codes):
    packed = pack_codes(codes, 4)
    np.testing.assert_array_equal(packed & 15, codes[:, ::2] + 8)
    np.testing.assert_array_equal(packed >> 4, codes[:, 1::2] + 8)


@settings(deadline=None)
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int8, shape, elements=st.integers(-2, 1))))
def test_a_byte_holds_four_codes_plus_2_the_first_in_the_lowest_bits(codes):
    packed = pack_codes(codes, 2)
    for place in range(4):
        np.testing.assert_array_equal(packed >> 2 * place & 3, codes[:, place::4] + 2)


@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int8, shape)))
def test_a_byte_holds_one_code_of_8_bits_plus_128(codes):
    np.testing.assert_array_equal(pack_codes(codes, 8), codes.astype(np.int16) + 128)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_in_another_memory_order_are_packed_alike(bits):
    codes = np.random.default_rng(0).integers(-2, 2, (7, 64)).astype(np.int8)
    np.testing.assert_array_equal(pack_codes(np.asfortranarray(codes), bits), pack_codes(codes, bits))


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.one_of(
            st.floats(width=32, allow_nan=False),
            st.floats(-(2.0**-13), 2.0**-13, width=32),
            st.floats(-7e4, 7e4, width=32),
        ),
    )
)
def test_scales_are_kept_as_float32_and_rounded_to_the_nearest_float16(scales):
    np.testing.assert_array_equal(pack_scales(scales, "FLOAT").view(np.float32), scales)
    with np.errstate(over="ignore"):
        nearest = scales.astype(np.float16)
    np.testing.assert_array_equal(pack_scales(scales, "FLOAT16").view(np.float16), nearest)


@pytest.mark.parametrize(("format", "relative"), [("FLOAT", 0), ("FLOAT16", 2.0**-11), ("BFLOAT16", 2.0**-8)])
def test_numbers_are_rounded_to_the_nearest_of_their_type(format, relative):
    values = np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32)
    data = FROM_FLOATS[format](values)
    if format == "BFLOAT16":
        back = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        back = data.view(np.float32 if format == "FLOAT" else np.float16).astype(np.float32)
    assert np.all(np.abs(back - values) <= relative * np.abs(values))
