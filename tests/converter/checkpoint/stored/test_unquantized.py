"""Weights of unquantized safetensors: exact values, and a lattice found where there is one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.checkpoint.directory import Directory
from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.safetensors import open_shards
from converter.checkpoint.stored import find_form
from converter.checkpoint.stored.unquantized import make_weight, sampled_ranges
from converter.checkpoint.weight import EXACT, NEEDS_F32_SCALE, OFF_LATTICE, Lattice, Weight
from converter.errors import CheckpointError
from support.raw_safetensors import write_tensors

Array = NDArray[np.generic]


def stored_weight(directory: Path, array: Array) -> Weight:
    directory.mkdir(exist_ok=True)
    write_tensors(directory / "model.safetensors", {"model.w": array})
    return make_weight("w", open_shards(Directory(directory)).tensors["model.w"])


def lattice_matrix(rows: int, columns: int, *, wide: bool = False, seed: int = 0) -> NDArray[np.float32]:
    """Values scale * code rounded to bfloat16, codes -7..7, a scale per 32 values."""
    random = np.random.default_rng(seed)
    scales = random.uniform(0.01, 0.02, (rows, columns // 32, 1)).astype(np.float32)
    if not wide:
        scales = bf16_floats(bf16_bits(scales))
    codes = random.integers(-7, 8, (rows, columns // 32, 32)).astype(np.float32)
    return bf16_floats(bf16_bits((scales * codes).reshape(rows, columns)))


def latent_matrix(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)


def test_a_lattice_is_found_and_reproduces_every_bit(tmp_path: Path) -> None:
    values = lattice_matrix(64, 96)
    weight = stored_weight(tmp_path, bf16_bits(values))
    assert (weight.name, weight.source, weight.stored, weight.shape) == ("w", "model.w", "BF16", (64, 96))
    assert weight.lattice == Lattice(4, 32)
    assert np.array_equal(weight.floats(0, 64), values)
    assert weight.codes is not None
    rows = weight.codes(3, 10)
    assert (rows.status == EXACT).all()
    again = np.repeat(rows.scales, 32, axis=1) * rows.codes
    assert np.array_equal(bf16_floats(bf16_bits(again.astype(np.float32))), values[3:10])


def test_float32_scales_are_a_lattice_too(tmp_path: Path) -> None:
    weight = stored_weight(tmp_path, bf16_bits(lattice_matrix(64, 96, wide=True)))
    assert weight.codes is not None
    assert set(np.unique(weight.codes(0, 64).status)) <= {EXACT, NEEDS_F32_SCALE}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_wider_files_hold_the_same_lattice(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = lattice_matrix(32, 64)
    values[np.abs(values) < 2.0**-14] = 0
    narrow = stored_weight(tmp_path / "narrow", bf16_bits(values))
    wide = stored_weight(tmp_path / "wide", values.astype(dtype))
    assert np.array_equal(wide.floats(0, 32), values)
    assert narrow.codes is not None
    assert wide.codes is not None
    one, other = narrow.codes(0, 32), wide.codes(0, 32)
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.scales, other.scales)
    assert (other.status == EXACT).all()


def test_float32_values_between_bfloat16_ones_are_on_no_lattice(tmp_path: Path) -> None:
    values = lattice_matrix(32, 64) * np.float32(1 + 2.0**-12)
    weight = stored_weight(tmp_path, values)
    assert weight.lattice is None
    assert weight.codes is None
    assert np.array_equal(weight.floats(0, 32), values)


def test_a_block_that_bfloat16_does_not_hold_is_off_the_lattice(tmp_path: Path) -> None:
    values = lattice_matrix(128, 64)
    values[5, 40] = np.float32(1 / 3)
    values[7, 3] = np.finfo(np.float32).max
    weight = stored_weight(tmp_path, values)
    assert weight.codes is not None
    status = weight.codes(0, 128).status
    assert np.argwhere(status == OFF_LATTICE).tolist() == [[5, 1], [7, 0]]


def test_latent_weights_are_on_no_lattice(tmp_path: Path) -> None:
    assert stored_weight(tmp_path, bf16_bits(latent_matrix(64, 64))).lattice is None


@pytest.mark.parametrize(("blocks", "found"), [(1, True), (5, True), (7, False)])
def test_one_block_in_a_hundred_may_be_off_the_lattice(tmp_path: Path, blocks: int, found: bool) -> None:
    values = lattice_matrix(300, 64)
    values[:blocks, :32] = latent_matrix(blocks, 32)
    assert (stored_weight(tmp_path, bf16_bits(values)).lattice is not None) is found


def test_blocks_of_one_magnitude_do_not_hide_latent_weights(tmp_path: Path) -> None:
    values = np.zeros((600, 64), np.float32)
    values[::2] = np.where(latent_matrix(300, 64) > 0, 0.5, -0.5)
    values[3] = latent_matrix(1, 64)
    assert stored_weight(tmp_path, bf16_bits(values)).lattice is None


def test_a_matrix_of_zeros_is_on_the_lattice(tmp_path: Path) -> None:
    weight = stored_weight(tmp_path, np.zeros((4, 64), np.uint16))
    assert weight.lattice is not None


@pytest.mark.parametrize("shape", [(64,), (1,), (), (4, 48), (4, 8, 16), (0, 64)])
def test_what_cannot_be_cut_into_blocks_is_float(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = stored_weight(tmp_path, np.full(shape, 0x3F80, np.uint16))
    assert weight.lattice is None
    assert np.array_equal(weight.floats(0, weight.rows), np.ones((weight.rows, weight.columns)))


def test_experts_are_read_by_the_rows_of_all_of_them(tmp_path: Path) -> None:
    values = lattice_matrix(24, 32).reshape(4, 6, 32)
    weight = stored_weight(tmp_path, bf16_bits(values))
    assert (weight.rows, weight.columns) == (24, 32)
    assert np.array_equal(weight.floats(11, 13), values.reshape(24, 32)[11:13])


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32])
def test_a_value_that_is_no_number_is_named(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = lattice_matrix(16, 64)
    values[11, 7] = np.nan
    array = np.where(np.isnan(values), 0x7FC0, bf16_bits(np.nan_to_num(values))).astype(np.uint16)
    with pytest.raises(
        CheckpointError, match=r"tensor 'model.w' has a value that is infinite or .* in row 11"
    ):
        stored_weight(tmp_path, array if dtype is np.uint16 else values.astype(dtype))


def test_an_infinite_value_outside_the_sample_is_named_when_it_is_read(tmp_path: Path) -> None:
    bits = bf16_bits(lattice_matrix(4096, 64))
    sampled = {row for start, stop in sampled_ranges(4096, 64) for row in range(start, stop)}
    row = next(row for row in range(4096) if row not in sampled)
    bits[row, 5] = 0x7F80
    weight = stored_weight(tmp_path, bits)
    assert weight.codes is not None
    for read in (weight.floats, weight.codes):
        with pytest.raises(CheckpointError, match=f"in row {row}$"):
            read(row - 1, row + 1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_are_no_weights(tmp_path: Path, dtype: type[np.generic]) -> None:
    with pytest.raises(CheckpointError, match=r"has dtype [IU]8, expected one of BF16, F16, F32"):
        stored_weight(tmp_path, np.zeros((4, 32), dtype))


@given(rows=st.integers(1, 300_000), columns=st.integers(1, 40_000))
def test_samples_are_spread_and_bounded(rows: int, columns: int) -> None:
    ranges = sampled_ranges(rows, columns)
    assert all(0 <= start < stop <= rows for start, stop in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == rows
    assert sum(stop - start for start, stop in ranges) * columns <= max(1 << 16, 2 * columns)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config has quant_method 'awq'"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "'compressed-tensors', which is not",
        ),
        (
            {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
            "text_config.quantization_config",
        ),
        ({"quantization_config": {}}, "has quant_method None"),
        ({"quantization_config": "int4"}, "has quant_method 'int4'"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config has quant_method None"),
    ],
)
def test_packed_checkpoints_are_named_with_what_is_read(config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_form(config)
    assert message in str(caught.value)
    assert "google/gemma-4-E2B-it-qat-q4_0-unquantized" in str(caught.value)


def test_checkpoints_without_a_quantization_are_unquantized_safetensors() -> None:
    assert find_form({"quantization_config": None, "text_config": {}}).name == "bf16-lattice"
