"""Rounding to codes and scales, judged by gguf-py where GGML has the type, and by NumPy for any block."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, Lattice, Weight
from targets.gguf.packing import FROM_CODES
from targets.gguf.storage import Q4_0, Q8_0
from targets.onnx.storage import Storage
from targets.rounding import largest_code, rounded
from targets.storing import Coded, naively_rounded

pytestmark = pytest.mark.slow

GGML = gguf.GGMLQuantizationType
#: GGML's types that numbers are rounded to.
ROUNDED = (Q4_0, Q8_0)
Floats = NDArray[np.float32]


def blocks(limit: float, block: int = 32) -> st.SearchStrategy[Floats]:
    """Rows whose blocks are alike in size, tie or are zero."""
    size = st.sampled_from([0.0, 2.0**-140, 2.0**-20, 1e-3, 1.0, limit])
    kinds = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]))
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 6)).map(lambda shape: (shape[0], block * shape[1]))
    rows = shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=kinds))
    return st.tuples(rows, size).map(lambda pair: (pair[0] * pair[1]).astype(np.float32))


def by_numpy(values: Floats, bits: int, block: int, *, negative: bool) -> tuple[NDArray[np.int64], Floats]:
    """GGML's rule, said once more: codes ``[blocks, block]`` and scales ``[blocks]``."""
    cut = values.reshape(-1, block or values.shape[1])
    half, one = 2 ** (bits - 1), np.float32(1)
    extremum = cut[np.arange(len(cut)), np.abs(cut).argmax(axis=1)]
    signed = bits < 8 and negative
    scales = extremum / np.float32(-half) if signed else np.abs(extremum) / np.float32(half - 1)
    normal = np.abs(scales) >= np.finfo(np.float32).tiny
    inverse = np.divide(one, scales, out=np.zeros_like(scales), where=normal)
    quotients = cut * inverse[:, None]
    if signed:
        codes = np.minimum((quotients + np.float32(half + 0.5)).astype(np.int64), 2 * half - 1) - half
    else:
        codes = (np.sign(quotients) * np.floor(np.abs(quotients).astype(np.float64) + 0.5)).astype(np.int64)
    return codes, scales


@pytest.mark.parametrize("coded", ROUNDED, ids=lambda coded: coded.name)
@settings(deadline=None)  # the first call compiles
@given(values=blocks(8 * 65504.0))
def test_blocks_of_ggml_s_types_are_those_of_gguf_py(coded: Coded, values: Floats) -> None:
    rows = coded.rounded(values)
    with np.errstate(all="ignore"):  # scales that float32 holds only as subnormals
        packed = gguf.quants.quantize(values, GGML[coded.name])
        expected = gguf.quants.dequantize(packed, GGML[coded.name])
    np.testing.assert_array_equal(rows.codes * np.repeat(rows.scales, 32, axis=1), expected)
    # where the scale is 0 codes mean nothing, and gguf-py's are those of an overflow
    telling = rows.scales.reshape(-1) != 0
    ours = FROM_CODES[coded.name](rows).reshape(telling.size, -1)
    np.testing.assert_array_equal(ours[telling], packed.reshape(telling.size, -1)[telling])


@settings(deadline=None)
@given(values=blocks(1e3))
def test_five_bits_are_rounded_as_gguf_py_does(values: Floats) -> None:
    rows = Coded("Q5_0", 5, 32).rounded(values)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(gguf.quants.quantize(values, GGML.Q5_0), GGML.Q5_0)
    np.testing.assert_array_equal(rows.codes * np.repeat(rows.scales, 32, axis=1), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [0, 16, 32, 48, 128])
@pytest.mark.parametrize("negative", [True, False])
def test_any_block_is_rounded_by_ggml_s_rule(bits: int, block: int, negative: bool) -> None:
    @settings(deadline=None, max_examples=30)
    @given(values=blocks(1e30, block or 24))
    def check(values: Floats) -> None:
        codes, scales = rounded(values, bits, block, negative=negative)
        expected, factors = by_numpy(values, bits, block, negative=negative)
        assert scales.shape == (len(values), values.shape[1] // (block or values.shape[1]))
        np.testing.assert_array_equal(scales.reshape(-1), factors)
        np.testing.assert_array_equal(codes.reshape(expected.shape), expected)
        assert negative or scales.min() >= 0

    check()


def test_rows_that_are_no_whole_blocks_are_not_rounded() -> None:
    with pytest.raises(ValueError, match="48 columns are not a multiple of 32"):
        rounded(np.ones((2, 48), np.float32), 4, 32)


@pytest.mark.parametrize("coded", ROUNDED, ids=lambda coded: coded.name)
@settings(deadline=None)
@given(values=blocks(1e3))
def test_scales_of_rounded_rows_are_float16_numbers_and_codes_fit(coded: Coded, values: Floats) -> None:
    rows = coded.rounded(values)
    np.testing.assert_array_equal(rows.scales.astype(np.float16).astype(np.float32), rows.scales)
    assert rows.codes.min() >= -(2 ** (coded.bits - 1))
    assert rows.codes.max() < 2 ** (coded.bits - 1)
    assert (rows.status == EXACT).all()


def test_a_type_with_float32_scales_keeps_them() -> None:
    values = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
    rows = Coded("t", 4, 64, "F32").rounded(values)
    _, expected = by_numpy(values, 4, 64, negative=True)
    np.testing.assert_array_equal(rows.scales.reshape(-1), expected)
    assert (rows.scales.astype(np.float16) != rows.scales).any()
    np.testing.assert_array_equal(rows.status == EXACT, rows.scales.astype(np.float16) == rows.scales)
    assert set(rows.status.flat) <= {EXACT, NEEDS_F32_SCALE}


@pytest.mark.parametrize("scales", ["FLOAT", "FLOAT16"])
def test_onnx_loses_what_gguf_loses(scales: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
    held = Storage(scales=scales).held
    for name, ggml in zip(("INT4", "INT8"), ROUNDED, strict=True):
        ours = held.find(name)
        np.testing.assert_array_equal(ours.rounded(values).codes, ggml.rounded(values).codes)
        np.testing.assert_array_equal(ours.rounded(values).scales, ggml.rounded(values).scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("negative", [True, False])
def test_the_largest_values_are_those_whose_scale_float16_still_holds(bits: int, negative: bool) -> None:
    coded = Coded("t", bits, 32, negative=negative)
    values = np.full((1, 32), -coded.largest, np.float32)
    assert coded.largest == largest_code(bits, negative=negative) * 65504
    assert np.abs(coded.rounded(values).scales) == 65504
    assert np.isinf(coded.rounded(np.float32(1.001) * values).scales).all()
    assert replace(coded, scale="F32").largest == np.inf


@pytest.mark.parametrize("coded", [Q4_0, Coded("t", 4, 64), Coded("t", 8, 0)], ids=str)
def test_a_weight_on_a_lattice_is_rounded_naively_to_the_type_s_own(coded: Coded) -> None:
    values = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
    weight = Weight("w", "w", (4, 128), "F32", lambda start, stop: values[start:stop])
    assert naively_rounded(weight, coded) is weight
    on = naively_rounded(replace(weight, lattice=Lattice(4, 16)), coded)
    assert on.lattice == Lattice(coded.bits, coded.block)
    assert on.codes is not None
    np.testing.assert_array_equal(on.codes(1, 3).codes, coded.rounded(values[1:3]).codes)
    np.testing.assert_array_equal(on.codes(1, 3).scales, coded.rounded(values[1:3]).scales)


def test_rows_of_other_blocks_stay_as_they_are() -> None:
    weight = Weight("w", "w", (4, 48), "F32", lambda start, stop: np.ones((4, 48), "f4"), Lattice(4, 16))
    assert naively_rounded(weight, Q4_0) is weight
