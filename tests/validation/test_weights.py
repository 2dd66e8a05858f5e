"""Exactness, measured: what an ulp is, what counts as exact, and what a damaged file shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from converter.errors import ValidationError
from converter.lattice import bf16_bits
from validation.weights import NAN_ULP, compare_blocks, measure

Bits = NDArray[np.uint32]


def places(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Place of each value, rounded to bfloat16, among all bfloat16 numbers, by another route."""
    bits = bf16_bits(values).astype(np.int64)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)


floats = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = (draw(st.integers(1, 4)), 8)
    reference = draw(arrays(np.float32, shape, elements=floats))
    # neighbours in float32 bits, so that small distances and ties of the rounding occur
    steps = draw(arrays(np.int32, shape, elements=st.integers(-(1 << 17), 1 << 17)))
    near = (reference.view(np.int32) + steps).view(np.float32)
    return reference, np.where(np.isfinite(near), near, reference).astype(np.float32)


@settings(deadline=None)  # the first call compiles
@given(pairs())
def test_distances_are_counted_in_bfloat16_steps(
    case: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    reference, stored = case
    distance = np.abs(places(reference) - places(stored))
    values, blocks, ulp, error, squares = compare_blocks(reference, stored, 4)
    assert values == (distance == 0).sum()
    assert blocks == (distance.reshape(-1, 4) == 0).all(1).sum()
    assert ulp == distance.max()
    wide_p, wide_q = reference.astype(np.float64), stored.astype(np.float64)
    assert error == pytest.approx(((wide_p - wide_q) ** 2).sum(), rel=1e-9)
    assert squares == pytest.approx((wide_p**2).sum(), rel=1e-9)


def test_negative_zero_equals_zero() -> None:
    zeros = np.zeros((1, 32), np.float32)
    assert compare_blocks(zeros, -zeros, 32)[:3] == (32, 1, 0)


def test_steps_join_at_zero() -> None:
    tiny = np.array([[1]], np.uint16).astype(np.uint32) << 16  # the smallest positive bfloat16
    positive = tiny.view(np.float32)
    assert compare_blocks(positive, -positive, 1)[2] == 2


def test_a_value_within_half_an_ulp_is_exact() -> None:
    one = np.ones((1, 2), np.float32)
    # bfloat16 has 8 significant bits: steps of 2**-7 above 1 and of 2**-8 below; ties go to the even 1.0
    assert compare_blocks(one, np.array([[1 + 2.0**-8, 1 - 2.0**-9]], np.float32), 2)[:3] == (2, 1, 0)
    assert compare_blocks(one, np.array([[1 + 2.0**-8 + 2.0**-20, 1]], np.float32), 2)[:3] == (1, 0, 1)


@pytest.mark.parametrize("sides", ["reference", "stored", "both"])
def test_nan_is_never_exact(sides: str) -> None:
    reference, stored = np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)
    if sides != "stored":
        reference[0, 1] = np.nan
    if sides != "reference":
        stored[0, 1] = np.nan
    assert compare_blocks(reference, stored, 2)[:3] == (3, 1, NAN_ULP)


def test_equal_infinities_are_exact() -> None:
    infinite = np.full((1, 4), np.inf, np.float32)
    assert compare_blocks(infinite, infinite, 4)[:4] == (4, 1, 0, 0.0)


def test_every_block_of_a_written_gguf_is_exact(e2b: Any) -> None:
    found = measure(e2b.checkpoint, e2b.stored())
    assert found.exact_fraction == 1.0
    assert [tensor.weight for tensor in found.tensors] == list(e2b.checkpoint.weights)
    assert {tensor.format for tensor in found.lattice} == {"Q4_0"}
    sizes = [w.size for w in e2b.checkpoint.weights.values() if w.lattice]
    assert sum(tensor.blocks for tensor in found.lattice) == sum(sizes) // 32
    assert max(tensor.max_ulp for tensor in found.tensors) == 0
    assert len(found.off_lattice) + len(found.lattice) == len(e2b.checkpoint.weights)


def test_one_changed_byte_is_one_block_that_is_not_exact(e2b: Any, tmp_path: Path) -> None:
    copy = tmp_path / e2b.path.name
    shutil.copyfile(e2b.path, copy)
    tensor = next(t for t in gguf.GGUFReader(copy).tensors if t.name == "blk.1.ffn_down.weight")
    with copy.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 18 * 7 + 5)  # a code of the eighth block
        code = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([code ^ 0x01]))
    damaged = replace(e2b, path=copy)
    found = {one.weight: one for one in measure(damaged.checkpoint, damaged.stored()).tensors}
    hit = found.pop("layers.1.mlp.down_proj.weight")
    assert hit.blocks - hit.exact_blocks == 1
    assert hit.max_ulp > 0
    assert hit.rms_error > 0
    assert all(one.max_ulp == 0 for one in found.values())


def test_scales_that_need_float32_are_within_one_ulp(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    artifact = write_gguf(checkpoint_factory("text", "max7-f32"), tmp_path)
    found = measure(artifact.checkpoint, artifact.stored())
    assert max(tensor.max_ulp for tensor in found.lattice) == 1
    assert found.exact_fraction is not None
    assert found.exact_fraction < 1


def test_a_checkpoint_on_no_lattice_has_no_exact_fraction(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    artifact = write_gguf(checkpoint_factory("text", "latent"), tmp_path)
    found = measure(artifact.checkpoint, artifact.stored())
    assert found.exact_fraction is None
    assert not found.lattice
    q8_0 = [tensor for tensor in found.off_lattice if tensor.format == "Q8_0"]
    assert q8_0
    assert all(0 < tensor.rms_error < 0.01 for tensor in q8_0)


def test_a_tensor_that_the_artifact_lacks_is_an_error(e2b: Any) -> None:
    stored = e2b.stored()
    del stored["layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValidationError, match=r"no tensor for layers\.0\.mlp\.up_proj\.weight"):
        measure(e2b.checkpoint, stored)


def test_progress_reaches_every_value(e2b: Any) -> None:
    seen: list[tuple[int, int]] = []
    measure(e2b.checkpoint, e2b.stored(), lambda done, total: seen.append((done, total)))
    total = sum(weight.size for weight in e2b.checkpoint.weights.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
