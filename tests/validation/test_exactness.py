"""Exactness, measured: what an ulp is, what counts as exact, and what a damaged file shows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.opened import Checkpoint, open_checkpoint
from converter.checkpoint.stored.unquantized import recovered
from converter.checkpoint.weight import LatticeRows, Weight
from converter.errors import ValidationError
from targets.target import StoredTensor, find_target
from validation.exactness import NAN_ULP, TensorExactness, compare_blocks, measure

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
    found = compare_blocks(reference, stored, 4)
    assert found.values == (distance == 0).sum()
    assert found.blocks == (distance.reshape(-1, 4) == 0).all(1).sum()
    assert found.ulp == distance.max()
    wide_p, wide_q = reference.astype(np.float64), stored.astype(np.float64)
    assert found.error == pytest.approx(((wide_p - wide_q) ** 2).sum(), rel=1e-9)
    assert found.squares == pytest.approx((wide_p**2).sum(), rel=1e-9)


#: Values of float16's normal and subnormal range, and beyond it on both sides.
halves = st.floats(-(2.0**17), 2.0**17, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32)


def half_places(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Place of each value, rounded to float16, among all float16 numbers, by another route."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float16).view(np.uint16).astype(np.int64)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)


@settings(deadline=None)  # the first call compiles
@given(arrays(np.float32, (2, 8), elements=halves), arrays(np.float32, (2, 8), elements=halves))
def test_distances_of_f16_are_counted_in_float16_steps(
    reference: NDArray[np.float32], stored: NDArray[np.float32]
) -> None:
    distance = np.abs(half_places(reference) - half_places(stored))
    found = compare_blocks(reference, stored, 4, "f16")
    assert (found.values, found.ulp) == ((distance == 0).sum(), distance.max())
    assert found.blocks == (distance.reshape(-1, 4) == 0).all(1).sum()


@pytest.mark.parametrize(("precision", "step"), [("bf16", 2.0**-7), ("f16", 2.0**-10), ("f32", 2.0**-23)])
def test_a_step_is_the_precisions_own(precision: str, step: float) -> None:
    one = np.ones((1, 2), np.float32)
    found = compare_blocks(one, one + np.array([[0, 3 * step]], np.float32), 2, precision)
    assert (found.values, found.blocks, found.ulp) == (1, 0, 3)


def test_negative_zero_equals_zero() -> None:
    zeros = np.zeros((1, 32), np.float32)
    found = compare_blocks(zeros, -zeros, 32)
    assert (found.values, found.blocks, found.ulp) == (32, 1, 0)


def test_steps_join_at_zero() -> None:
    tiny = np.array([[1]], np.uint16).astype(np.uint32) << 16  # the smallest positive bfloat16
    positive = tiny.view(np.float32)
    assert compare_blocks(positive, -positive, 1).ulp == 2


def test_a_value_within_half_an_ulp_is_exact() -> None:
    one = np.ones((1, 2), np.float32)
    # bfloat16 has 8 significant bits: steps of 2**-7 above 1 and of 2**-8 below; ties go to the even 1.0
    found = compare_blocks(one, np.array([[1 + 2.0**-8, 1 - 2.0**-9]], np.float32), 2)
    assert (found.values, found.blocks, found.ulp) == (2, 1, 0)
    found = compare_blocks(one, np.array([[1 + 2.0**-8 + 2.0**-20, 1]], np.float32), 2)
    assert (found.values, found.blocks, found.ulp) == (1, 0, 1)


@pytest.mark.parametrize("precision", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("sides", ["reference", "stored", "both"])
def test_nan_is_never_exact_and_is_counted(sides: str, precision: str) -> None:
    reference, stored = np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)
    if sides != "stored":
        reference[0, 1] = np.nan
    if sides != "reference":
        stored[0, 1] = np.nan
    found = compare_blocks(reference, stored, 2, precision)
    assert (found.values, found.blocks, found.ulp, found.nans) == (3, 1, NAN_ULP[precision], 1)


def test_equal_infinities_are_exact() -> None:
    infinite = np.full((1, 4), np.inf, np.float32)
    found = compare_blocks(infinite, infinite, 4)
    assert (found.values, found.blocks, found.ulp, found.error, found.nans) == (4, 1, 0, 0.0, 0)


def test_every_block_of_a_written_gguf_is_exact(e2b: Any) -> None:
    found = measure(e2b.checkpoint, e2b.stored())
    assert found.exact_fraction == 1.0
    assert [tensor.weight for tensor in found.tensors] == list(e2b.checkpoint.weights)
    assert {tensor.type for tensor in found.lattice} == {"Q4_0"}
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


Rows = NDArray[np.float32]


def as_stored(
    weight: Weight, change: Callable[[Rows], Rows] = lambda rows: rows, ruled: bool = True
) -> StoredTensor:
    """A weight as float16 scales hold it, the rule of every target, and what ``change`` makes of it."""

    def rule(start: int, stop: int) -> Rows:
        if weight.codes is None:
            return weight.floats(start, stop)
        rows = weight.codes(start, stop)
        scales = rows.scales.astype(np.float16).astype(np.float32)
        return (rows.codes.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(rows.codes.shape)

    def floats(start: int, stop: int) -> Rows:
        return change(rule(start, stop).copy())

    return StoredTensor(weight.name, weight.name, "X", weight.shape, 0, floats, rule if ruled else None)


def measured(
    checkpoint: Checkpoint, name: str, change: Callable[[Rows], Rows], ruled: bool = True
) -> TensorExactness:
    """One weight of an artifact that ``change`` made of the right one."""
    stored = {key: as_stored(weight) for key, weight in checkpoint.weights.items()}
    stored[name] = as_stored(checkpoint.weights[name], change, ruled)
    (found,) = (one for one in measure(checkpoint, stored).tensors if one.weight == name)
    return found


def times(factor: float) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        rows[2, 32:64] *= np.float32(factor)
        return rows

    return change


MATRIX = "layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def of_scheme(
    checkpoint_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Checkpoint]:
    """The checkpoint of a scheme; of ``off-blocks``, a block of a matrix lies on no lattice."""

    def make(scheme: str) -> Checkpoint:
        if scheme != "off-blocks":
            return open_checkpoint(checkpoint_factory("text", scheme))
        directory = tmp_path_factory.mktemp(scheme)
        shutil.copytree(checkpoint_factory("text"), directory, dirs_exist_ok=True)
        (file,) = directory.glob("*.safetensors")
        tensors = load_file(file)
        matrix = tensors[f"model.{MATRIX}"]
        matrix[5, 64:96] = torch.linspace(0.011, 0.043, 32).to(matrix.dtype)
        save_file(tensors, file, {"format": "pt"})
        return open_checkpoint(directory)

    return make


@pytest.mark.parametrize(
    ("scheme", "kind"), [("max7-f32", "not_representable"), ("off-blocks", "off_lattice")]
)
def test_blocks_that_cannot_be_exact_are_counted_by_their_class(
    scheme: str, kind: str, of_scheme: Callable[[str], Checkpoint]
) -> None:
    checkpoint = of_scheme(scheme)
    found = measured(checkpoint, MATRIX, lambda rows: rows)
    classes = {"not_representable": found.not_representable, "off_lattice": found.off_lattice}
    assert classes.pop(kind) == found.blocks - found.exact_blocks > 0
    assert list(classes.values()) == [0]
    assert found.wrong == 0
    assert all(block.kind != "wrong" for block in found.named)
    assert found.named


@pytest.mark.parametrize("scheme", ["max7", "max7-f32", "off-blocks"])
@pytest.mark.parametrize("factor", [1.01, 0.0, -1.0, 100.0, math.nan])
def test_a_scale_that_is_not_the_rules_makes_a_wrong_block_in_every_class(
    scheme: str, factor: float, of_scheme: Callable[[str], Checkpoint]
) -> None:
    checkpoint = of_scheme(scheme)
    found = measured(checkpoint, MATRIX, times(factor))
    assert found.wrong == 1
    assert found.named[0].kind == "wrong"
    assert (found.named[0].row, found.named[0].index) == (2, 1)


def test_another_tools_rounding_of_a_block_that_cannot_be_exact_is_wrong(
    of_scheme: Callable[[str], Checkpoint],
) -> None:
    checkpoint = of_scheme("off-blocks")
    found = measured(checkpoint, MATRIX, lambda rows: rows, ruled=False)
    assert found.wrong == found.blocks - found.exact_blocks > 0


def test_a_value_of_a_norm_is_compared_bit_for_bit(checkpoint_factory: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))

    def nudged(rows: Rows) -> Rows:
        rows[0, 3] = np.nextafter(rows[0, 3], np.float32(9))
        return rows

    name = "layers.0.input_layernorm.weight"
    assert measured(checkpoint, name, lambda rows: rows).wrong == 0
    found = measured(checkpoint, name, nudged)
    assert (found.wrong, found.max_ulp) == (1, 0)  # far less than a step of bfloat16


NORM = "layers.0.input_layernorm.weight"


@pytest.mark.parametrize(("dtype", "precision"), [("F32", "f32"), ("F16", "f16"), ("BF16", "bf16")])
def test_a_weight_on_no_lattice_is_compared_in_the_checkpoints_dtype(
    dtype: str, precision: str, checkpoint_factory: Callable[..., Path]
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text", "latent"))
    norm = checkpoint.weights[NORM]
    values = np.random.default_rng(0).normal(size=(1, norm.size)).astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        values = bf16_floats(bf16_bits(values))
    weight = replace(norm, stored=dtype, floats=lambda start, stop: values[start:stop])
    checkpoint = replace(checkpoint, weights={NORM: weight})

    def narrowed(rows: Rows) -> Rows:
        return bf16_floats(bf16_bits(rows))

    kept = measured(checkpoint, NORM, lambda rows: rows)
    assert (kept.precision, kept.exact_values, kept.max_ulp) == (precision, norm.size, 0)
    narrow = measured(checkpoint, NORM, narrowed)
    equal = int(np.count_nonzero(narrowed(values) == values))
    assert narrow.exact_values == equal
    assert (narrow.max_ulp > 0) == (equal < norm.size) == (dtype != "BF16")


@pytest.mark.parametrize("off_lattice", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_the_proof_calls_exact_what_the_plan_calls_exact(
    dtype: str,
    off_lattice: str,
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Any],
    tmp_path: Path,
) -> None:
    source = tmp_path / "model"
    shutil.copytree(checkpoint_factory("text", "latent", stored=dtype), source)
    (file,) = source.glob("*.safetensors")
    tensors = load_file(file)
    finer = {name: tensor * 1.0009765625 for name, tensor in tensors.items()}  # more digits than bfloat16 has
    save_file(finer, file, {"format": "pt"})
    artifact = write_gguf(source, tmp_path, off_lattice=off_lattice)
    found = {one.weight: one for one in measure(artifact.checkpoint, artifact.stored()).tensors}
    plan = find_target("gguf").plan(artifact.checkpoint, "model", {"off_lattice": off_lattice})
    planned = {one.weight: one.exact for one in plan.tensors if one.weight}
    assert {name: one.exact_values == one.values for name, one in found.items()} == planned
    assert {found[name].type for name, exact in planned.items() if exact} >= {"F32"}
    assert all(one.wrong == 0 for one in found.values())
    inexact = {"bf16"} if dtype == "F16" else {"bf16", "f16"}
    assert all(planned.values()) == (off_lattice not in inexact)


@pytest.mark.parametrize(("dtype", "step"), [("F32", 2.0**-20), ("F16", 2.0**-10)])
def test_a_block_off_the_lattice_is_compared_in_the_checkpoints_dtype(
    dtype: str, step: float, of_scheme: Callable[[str], Checkpoint]
) -> None:
    checkpoint = of_scheme("max7")
    matrix = checkpoint.weights[MATRIX]
    values = matrix.floats(0, matrix.rows).copy()
    values[5, 64:96] = 1 + step * np.arange(32, dtype=np.float32)  # numbers that bfloat16 does not hold

    def codes(start: int, stop: int) -> LatticeRows:
        return recovered(values[start:stop].astype(np.float32 if dtype == "F32" else np.float16))

    weight = replace(matrix, stored=dtype, floats=lambda start, stop: values[start:stop], codes=codes)
    checkpoint = replace(checkpoint, weights={MATRIX: weight})

    def as_numbers(rows: Rows) -> Rows:
        return values.copy()

    def in_bfloat16(rows: Rows) -> Rows:
        return bf16_floats(bf16_bits(values))

    whole = measured(checkpoint, MATRIX, as_numbers)
    assert (whole.exact_blocks, whole.exact_values, whole.max_ulp) == (whole.blocks, matrix.size, 0)
    found = measured(checkpoint, MATRIX, in_bfloat16)
    assert found.precision == "bf16"
    assert found.blocks - found.exact_blocks == 1
    equal = np.count_nonzero(in_bfloat16(values) == values)
    assert (found.exact_values, found.max_ulp) == (equal, 1)
    assert (found.named[0].row, found.named[0].index, found.named[0].ulp) == (5, 2, 1)
    ruled = measured(checkpoint, MATRIX, lambda rows: rows)
    assert (ruled.off_lattice, ruled.wrong) == (1, 0)
    assert ruled.exact_blocks == ruled.blocks - 1


def test_a_checkpoint_on_no_lattice_has_no_exact_fraction(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    artifact = write_gguf(checkpoint_factory("text", "latent"), tmp_path)
    found = measure(artifact.checkpoint, artifact.stored())
    assert found.exact_fraction is None
    assert not found.lattice
    q8_0 = [tensor for tensor in found.off_lattice if tensor.type == "Q8_0"]
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
