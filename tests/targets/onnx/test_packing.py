"""The bytes of codes, scales and numbers, judged by NumPy and by gguf-py's own rounding."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from targets.gguf.packing import FROM_CODES
from targets.onnx.packing import FROM_FLOATS, pack_codes, pack_scales
from targets.storing import rounded

GGML = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6)).map(lambda shape: (shape[0], 32 * shape[1]))


@settings(deadline=None)  # the first call compiles
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int8, shape, elements=st.integers(-8, 7))))
def test_a_byte_holds_two_codes_plus_8_the_first_in_the_low_nibble(codes):
    packed = pack_codes(codes, 4)
    np.testing.assert_array_equal(packed & 15, codes[:, ::2] + 8)
    np.testing.assert_array_equal(packed >> 4, codes[:, 1::2] + 8)


@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.int8, shape)))
def test_a_byte_holds_one_code_of_8_bits_plus_128(codes):
    np.testing.assert_array_equal(pack_codes(codes, 8), codes.astype(np.int16) + 128)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_in_another_memory_order_are_packed_alike(bits):
    codes = np.random.default_rng(0).integers(-8, 8, (7, 64)).astype(np.int8)
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


def blocks(limit):
    """Rows whose blocks are alike in size, tie or are zero."""
    size = st.sampled_from([0.0, 2.0**-140, 2.0**-20, 1e-3, 1.0, limit])
    kinds = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
    rows = SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=kinds))
    return st.tuples(rows, size).map(lambda pair: (pair[0] * pair[1]).astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@settings(deadline=None)
@given(values=blocks(8 * 65504.0))
def test_rounded_rows_are_those_of_gguf(bits, values):
    rows = rounded(values, bits)
    with np.errstate(all="ignore"):  # scales that float32 holds only as subnormals
        packed = gguf.quants.quantize(values, GGML[bits])
        expected = gguf.quants.dequantize(packed, GGML[bits])
    np.testing.assert_array_equal(rows.codes * np.repeat(rows.scales, 32, axis=1), expected)
    # where the scale is 0 codes mean nothing, and gguf-py's are those of an overflow
    telling = rows.scales.reshape(-1) != 0
    ours = FROM_CODES[GGML[bits].name](rows).reshape(telling.size, -1)
    np.testing.assert_array_equal(ours[telling], packed.reshape(telling.size, -1)[telling])


@pytest.mark.parametrize("bits", [4, 8])
@settings(deadline=None)
@given(values=blocks(1e3))
def test_scales_of_rounded_rows_are_float16_numbers_and_codes_fit(bits, values):
    rows = rounded(values, bits)
    codes, scales = rows.codes, rows.scales
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() < 2 ** (bits - 1)


@pytest.mark.parametrize(("format", "relative"), [("FLOAT", 0), ("FLOAT16", 2.0**-11), ("BFLOAT16", 2.0**-8)])
def test_numbers_are_rounded_to_the_nearest_of_their_type(format, relative):
    values = np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32)
    data = FROM_FLOATS[format](values)
    if format == "BFLOAT16":
        back = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        back = data.view(np.float32 if format == "FLOAT" else np.float16).astype(np.float32)
    assert np.all(np.abs(back - values) <= relative * np.abs(values))
