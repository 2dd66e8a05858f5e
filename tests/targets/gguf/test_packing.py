"""The bytes of GGML's types, judged by gguf-py's own dequantisation."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converter.checkpoint.weight import EXACT, LatticeRows
from targets.gguf.packing import (
    FROM_CODES,
    FROM_FLOATS,
    pack_q4_0,
    pack_q8_0,
    pack_tq2_0,
    unpack_q4_0,
    unpack_tq2_0,
)
from targets.gguf.storage import GGML

Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
TQ2_0 = gguf.GGMLQuantizationType.TQ2_0
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))
HALF_FLOATS = st.floats(width=16, allow_nan=False, allow_infinity=False)


def lattice_rows(codes, scales):
    return LatticeRows(codes, scales, np.full(scales.shape, EXACT, np.uint8))


@st.composite
def rows(draw, elements):
    count, blocks = draw(SHAPES)
    codes = draw(arrays.arrays(np.int8, (count, 32 * blocks), elements=st.integers(-8, 7)))
    scales = draw(arrays.arrays(np.float32, (count, blocks), elements=elements))
    return lattice_rows(codes, scales)


@settings(deadline=None)  # the first call compiles
@given(rows(HALF_FLOATS))
def test_dequantised_blocks_are_scale_times_code(given_rows):
    packed = pack_q4_0(given_rows)
    assert packed.shape == (len(given_rows.codes), GGML.row_bytes("Q4_0", given_rows.codes.shape[1]))
    expected = given_rows.codes * np.repeat(given_rows.scales, 32, axis=1)
    np.testing.assert_array_equal(gguf.quants.dequantize(packed, Q4_0), expected)


def test_every_scale_and_every_code_is_dequantised_as_gguf_py_does():
    """All 65,536 float16 scales, infinities and NaN among them, with all 16 codes in both halves."""
    blocks = np.empty((1 << 16, 18), np.uint8)
    blocks[:, :2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    blocks[:, 2:] = np.arange(16) | (15 - np.arange(16)) << 4
    data = blocks.reshape(256, -1)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(data, Q4_0)
    found = unpack_q4_0(data)
    assert (found.shape, found.dtype) == ((256, 256 * 32), np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_rows_that_are_not_contiguous_are_dequantised_alike():
    data = np.random.default_rng(0).integers(0, 256, (6, 36), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_q4_0(data[::2]), unpack_q4_0(data[::2].copy()))


@settings(deadline=None)
@given(
    rows(
        st.one_of(
            st.floats(width=32, allow_nan=False),
            st.floats(-(2.0**-13), 2.0**-13, width=32),
            st.floats(-7e4, 7e4, width=32),
        )
    )
)
def test_a_scale_that_float16_does_not_hold_is_rounded_to_the_nearest(given_rows):
    packed = pack_q4_0(given_rows).reshape(len(given_rows.codes), -1, 18)
    with np.errstate(over="ignore"):
        expected = given_rows.scales.astype(np.float16)
    np.testing.assert_array_equal(packed[..., :2].copy().view(np.float16)[..., 0], expected)


def test_codes_in_another_memory_order_are_packed_alike():
    codes = np.random.default_rng(0).integers(-8, 8, (7, 64)).astype(np.int8)
    scales = np.ones((7, 2), np.float32)
    straight = pack_q4_0(lattice_rows(codes, scales))
    np.testing.assert_array_equal(pack_q4_0(lattice_rows(np.asfortranarray(codes), scales)), straight)


@settings(deadline=None)
@given(
    arrays.arrays(np.int8, (3, 64), elements=st.integers(-128, 127)),
    arrays.arrays(np.float32, (3, 2), elements=HALF_FLOATS),
)
def test_codes_of_8_bits_are_dequantised_as_scale_times_code(codes, scales):
    packed = pack_q8_0(lattice_rows(codes, scales))
    expected = codes * np.repeat(scales, 32, axis=1)
    np.testing.assert_array_equal(gguf.quants.dequantize(packed, Q8_0), expected)


@settings(deadline=None)
@given(
    arrays.arrays(np.int8, (3, 512), elements=st.integers(-2, 1)),
    arrays.arrays(np.float32, (3, 2), elements=st.floats(width=32, allow_nan=False)),
)
def test_codes_of_2_bits_are_dequantised_as_scale_times_code(codes, scales):
    with np.errstate(over="ignore", invalid="ignore"):
        packed = pack_tq2_0(lattice_rows(codes, scales))
        halves = scales.astype(np.float16).astype(np.float32)
        expected = codes * np.repeat(halves, 256, axis=1)
        assert packed.shape == (3, GGML.row_bytes("TQ2_0", 512))
        np.testing.assert_array_equal(gguf.quants.dequantize(packed, TQ2_0), expected)


def test_every_place_of_a_block_has_its_own_two_bits():
    """One code that is not zero at each of the 256 places."""
    codes = np.eye(256, dtype=np.int8)
    packed = pack_tq2_0(lattice_rows(codes, np.full((256, 1), 3, np.float32)))
    np.testing.assert_array_equal(gguf.quants.dequantize(packed, TQ2_0), 3 * np.eye(256, dtype=np.float32))
    np.testing.assert_array_equal(unpack_tq2_0(packed), 3 * np.eye(256, dtype=np.float32))


def test_all_scales_and_all_bytes_of_tq2_0_are_dequantised_as_gguf_py_does():
    """All 65,536 float16 scales, infinities and NaN among them, with all 256 bytes of codes."""
    blocks = np.empty((1 << 16, 66), np.uint8)
    blocks[:, 64:] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    blocks[:, :64] = (np.arange(1 << 22) * 37 % 256).reshape(-1, 64)
    data = blocks.reshape(256, -1)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(data, TQ2_0)
    np.testing.assert_array_equal(unpack_tq2_0(data).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("format", [*FROM_FLOATS, "Q4_0", "Q8_0"])
def test_float_rows_take_the_bytes_that_the_type_says(format):
    values = np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32)
    coded = GGML.find(format)
    data = FROM_CODES[format](coded.rounded(values)) if coded else FROM_FLOATS[format](values)
    assert data.nbytes == 3 * GGML.row_bytes(format, 96)
    back = gguf.quants.dequantize(data.reshape(3, -1), gguf.GGMLQuantizationType[format])
    assert np.abs(back - values).max() <= {"F32": 0, "F16": 2e-3, "BF16": 1.6e-2, "Q8_0": 0.02}.get(
        format, 0.4
    )


def test_rows_that_do_not_divide_into_blocks_have_no_size():
    with pytest.raises(ValueError, match="multiple"):
        GGML.row_bytes("Q4_0", 48)
