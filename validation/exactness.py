"""Exactness of an artifact's weights, measured from the written file.

Both sides are rounded to bfloat16, the precision in which QAT checkpoints are published (rounding changes
nothing on the checkpoint's side then), and compared as bfloat16 numbers. A value is exact if they are equal,
a block if all its values are. The distance of two values is counted in bfloat16 ulps: the number of
steps from one bfloat16 number to the other. Negative zero and zero are the same number, so the steps on both
sides of zero join there. NaN is equal to nothing, and ``NAN_ULP`` from everything.

A block of a lattice weight is of one of four classes:

* *exact*;
* *scale not representable*: a float32 scale reproduces the block, and no scale of the artifact's type does.
  The codes are the trained ones and the stored scale is the nearest, so that each value is off by at most one
  ulp;
* *off the lattice*: no float32 scale reproduces the checkpoint's block. It holds what the target's rule
  makes;
* *wrong*: everything else.

A value of any other weight (norms, scalars, matrices on no lattice) is right if it is what the target's rule
makes of the checkpoint's, bit for bit, and otherwise wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import NEEDS_F32_SCALE, OFF_LATTICE, Weight
from converter.errors import ValidationError
from converter.system.child import Progress
from converter.system.compiled import compiled
from converter.system.processors import processors
from targets.target import StoredTensor
from validation.parallel import in_flight

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Distance that stands for NaN: all bfloat16 numbers from the lowest to the highest.
NAN_ULP = 0xFF00
#: Blocks of a tensor that are named one by one.
NAMED = 16


@dataclass(frozen=True, slots=True)
class Block:
    """One block that is not exact: its row in the weight, its index in the row, the largest distance of its
    values in ulps, and its class."""

    row: int
    index: int
    ulp: int
    kind: str


@dataclass(frozen=True, slots=True)
class TensorExactness:
    """One weight of the checkpoint against its tensor in the artifact.

    ``block`` is the number of values that share a scale (0: a whole row), ``None`` for a weight on no
    lattice, which has no blocks. ``exact_values`` of ``values`` are exact. ``rms_error`` is the root mean
    square of the differences (of the unrounded values) over that of the checkpoint's values. Of the
    ``blocks``, ``not_representable`` and ``off_lattice`` are of these classes; ``wrong`` counts wrong blocks,
    for a weight without blocks wrong values. ``named`` are the first blocks that are not exact. ``coded`` is
    the weight's.
    """

    weight: str
    stored_as: str
    format: str
    block: int | None
    values: int
    exact_values: int
    blocks: int
    exact_blocks: int
    max_ulp: int
    rms_error: float
    not_representable: int = 0
    off_lattice: int = 0
    wrong: int = 0
    named: tuple[Block, ...] = ()
    coded: bool = False

    @property
    def exact_fraction(self) -> float:
        """Share of exact blocks, of exact values where there are no blocks."""
        return self.exact_blocks / self.blocks if self.blocks else self.exact_values / self.values

    @property
    def values_on_lattice(self) -> float:
        """How many values lie on a lattice in the checkpoint."""
        return self.values * (1 - self.off_lattice / self.blocks) if self.blocks else 0.0


@dataclass(frozen=True, slots=True)
class WeightExactness:
    """All weights, in the checkpoint's order."""

    tensors: tuple[TensorExactness, ...]

    @property
    def lattice(self) -> tuple[TensorExactness, ...]:
        """Weights that lie on a lattice: they must be exact."""
        return tuple(tensor for tensor in self.tensors if tensor.block is not None)

    @property
    def off_lattice(self) -> tuple[TensorExactness, ...]:
        """Norms, scalars and matrices that lie on none."""
        return tuple(tensor for tensor in self.tensors if tensor.block is None)

    @property
    def exact_fraction(self) -> float | None:
        """Share of exact blocks of all lattice weights; ``None`` if the checkpoint has none."""
        blocks = self.count("blocks")
        return self.count("exact_blocks") / blocks if blocks else None

    @property
    def holdable_fraction(self) -> float | None:
        """Share of exact blocks among those that the artifact's types can hold exactly: all but those whose
        scale is not representable and those that lie on no lattice. ``None`` if there are none."""
        blocks = self.count("blocks") - self.count("not_representable") - self.count("off_lattice")
        return self.count("exact_blocks") / blocks if blocks else None

    @property
    def right_values(self) -> float | None:
        """Share of the values of weights without blocks that are right; ``None`` if there are none."""
        values = sum(tensor.values for tensor in self.off_lattice)
        return 1 - sum(tensor.wrong for tensor in self.off_lattice) / values if values else None

    @property
    def on_lattice_fraction(self) -> float | None:
        """Share of the coded weights' values that lie on a lattice in the checkpoint, the same as the share
        of their blocks; ``None`` if no weight is coded."""
        coded = [tensor for tensor in self.tensors if tensor.coded]
        values = sum(tensor.values for tensor in coded)
        return sum(tensor.values_on_lattice for tensor in coded) / values if values else None

    def count(self, name: str) -> int:
        """The sum of a number of the lattice weights, such as ``exact_blocks``."""
        return sum(getattr(tensor, name) for tensor in self.lattice)


def measure(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    progress: Progress = lambda done, total: None,
    threads: int | None = None,
) -> WeightExactness:
    """Compare every weight of the checkpoint with its tensor in the artifact, by row ranges on all cores.

    ``progress`` counts values. Raises ``ValidationError`` when the artifact lacks a tensor or a tensor has
    another size.
    """
    weights = list(checkpoint.weights.values())
    for weight in weights:
        if weight.name not in stored:
            raise ValidationError(f"the artifact has no tensor for {weight.name}")
        if math.prod(stored[weight.name].shape) != weight.size:
            tensor = stored[weight.name]
            raise ValidationError(
                f"{tensor.stored_as} has shape {tensor.shape}, {weight.name} {weight.shape}"
            )
    tasks = (
        (index, start, stop) for index, weight in enumerate(weights) for start, stop in weight.row_ranges()
    )
    sums = [_Sum() for _ in weights]
    total, done = sum(weight.size for weight in weights), 0

    def compare(task: tuple[int, int, int]) -> tuple[int, int, _Sum]:
        index, start, stop = task
        weight = weights[index]
        return index, (stop - start) * weight.columns, _compare_rows(weight, stored[weight.name], start, stop)

    for index, size, found in in_flight(compare, tasks, threads or processors()):
        sums[index] = sums[index].plus(found)
        done += size
        progress(done, total)
    return WeightExactness(
        tuple(_finish(weight, stored[weight.name], sums[index]) for index, weight in enumerate(weights))
    )


@dataclass(frozen=True, slots=True)
class _Sum:
    """What adds up over row ranges; ``error`` and ``reference`` are sums of squares."""

    exact_values: int = 0
    blocks: int = 0
    exact_blocks: int = 0
    max_ulp: int = 0
    error: float = 0.0
    reference: float = 0.0
    not_representable: int = 0
    off_lattice: int = 0
    wrong: int = 0
    named: tuple[Block, ...] = ()

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(
            self.exact_values + other.exact_values,
            self.blocks + other.blocks,
            self.exact_blocks + other.exact_blocks,
            max(self.max_ulp, other.max_ulp),
            self.error + other.error,
            self.reference + other.reference,
            self.not_representable + other.not_representable,
            self.off_lattice + other.off_lattice,
            self.wrong + other.wrong,
            (*self.named, *other.named)[:NAMED],
        )


def _compare_rows(weight: Weight, tensor: StoredTensor, start: int, stop: int) -> _Sum:
    shape = (stop - start, weight.columns)
    ours = np.ascontiguousarray(weight.floats(start, stop), np.float32).reshape(shape)
    theirs = np.ascontiguousarray(tensor.floats(start, stop), np.float32).reshape(shape)
    block = (weight.lattice.block or weight.columns) if weight.lattice else weight.columns
    values, blocks, ulp, error, reference = compare_blocks(ours, theirs, block)
    if weight.lattice is None:
        right = _right(tensor, theirs, start, stop)
        wrong = ours.size - (values if right is None else int(np.count_nonzero(right)))
        return _Sum(values, 0, 0, ulp, error, reference, wrong=wrong)
    count = ours.size // block
    found = _Sum(values, count, blocks, ulp, error, reference)
    if blocks == count:
        return found
    return replace(found, **_classes(weight, tensor, ours, theirs, start, stop))


def _right(
    tensor: StoredTensor, stored: NDArray[np.float32], start: int, stop: int
) -> NDArray[np.bool_] | None:
    """Which of the artifact's values ``[rows, columns]`` are what the rule makes, bit for bit; ``None`` for a
    format that has no rule."""
    if tensor.rule is None:
        return None
    expected = np.ascontiguousarray(tensor.rule(start, stop), np.float32).reshape(stored.shape)
    right: NDArray[np.bool_] = expected.view(np.int32) == stored.view(np.int32)
    return right


def _classes(
    weight: Weight,
    tensor: StoredTensor,
    ours: NDArray[np.float32],
    theirs: NDArray[np.float32],
    start: int,
    stop: int,
) -> dict[str, Any]:
    """Numbers of blocks by class, and the first that are not exact, of rows that are not all exact."""
    assert weight.codes is not None
    rows = weight.codes(start, stop)
    ulps = block_distances(ours, theirs, ours.size // rows.status.size).reshape(rows.status.shape)
    right = _right(tensor, theirs, start, stop)
    as_ruled = np.zeros(ulps.size, np.bool_) if right is None else right.reshape(ulps.size, -1).all(axis=1)
    as_ruled = as_ruled.reshape(ulps.shape)
    inexact = ulps > 0
    narrow = inexact & as_ruled & (rows.status == NEEDS_F32_SCALE) & (ulps <= 1)
    off = inexact & as_ruled & (rows.status == OFF_LATTICE)
    wrong = inexact & ~narrow & ~off
    # the nearest scale of the type, but below its normal range, where its steps are coarse
    coarse = wrong & as_ruled & (rows.status == NEEDS_F32_SCALE)
    kinds = np.select(
        [narrow, off, coarse],
        ["scale not representable", "off the lattice", "scale below the type's range"],
        "wrong",
    )
    # wrong ones first: they are what a reader looks for
    places = [*zip(*np.nonzero(wrong), strict=True), *zip(*np.nonzero(narrow | off), strict=True)][:NAMED]
    return {
        "not_representable": int(np.count_nonzero(narrow)),
        "off_lattice": int(np.count_nonzero(off)),
        "wrong": int(np.count_nonzero(wrong)),
        "named": tuple(
            Block(start + int(row), int(index), int(ulps[row, index]), str(kinds[row, index]))
            for row, index in places
        ),
    }


def compare_blocks(
    reference: NDArray[np.float32], stored: NDArray[np.float32], block: int
) -> tuple[int, int, int, float, float]:
    """Compare float32 ``[rows, columns]`` arrays whose columns are whole blocks.

    Returns exact values, exact blocks, the largest distance in ulps, the sum of squared differences and
    the sum of squares of the reference (both float64).
    """
    if reference.shape != stored.shape or reference.shape[1] % block:
        raise ValueError(f"shapes {reference.shape} and {stored.shape} in blocks of {block}")
    ours, theirs = reference.reshape(-1), stored.reshape(-1)
    error, squares = _squares(ours, theirs)
    if _all_exact(ours, theirs) and np.isfinite(error):  # the rule: two passes without a branch
        return ours.size, ours.size // block, 0, float(error), float(squares)
    values, blocks, ulp, error, squares = _compare(ours, theirs, block)
    return int(values), int(blocks), int(ulp), float(error), float(squares)


def block_distances(
    reference: NDArray[np.float32], stored: NDArray[np.float32], block: int
) -> NDArray[np.int32]:
    """The largest distance in ulps in every block, int32 ``[values / block]``, of arrays as in
    ``compare_blocks``."""
    found = np.zeros(reference.size // block, np.int32)
    _distances(reference.reshape(-1), stored.reshape(-1), block, found)
    return found


@compiled(inline="always")
def _order(bits):  # type: ignore[no-untyped-def]
    """The place of a float32, given by its bits and rounded to bfloat16 (ties to even), among all bfloat16
    numbers, zero being 0."""
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    even = np.int32((magnitude >> np.int32(16)) & np.int32(1))
    rounded = np.int32(np.int32(magnitude + np.int32(0x7FFF) + even) >> np.int32(16))
    return np.int32(-rounded) if bits < 0 else rounded


@compiled()
def _all_exact(reference, stored):  # type: ignore[no-untyped-def]
    a, b = reference.view(np.int32), stored.view(np.int32)
    apart = np.int32(0)
    for i in range(a.size):
        apart |= np.int32(_order(a[i]) ^ _order(b[i]))
    return apart == 0


@compiled(fastmath={"reassoc"})
def _squares(reference, stored):  # type: ignore[no-untyped-def]
    """Sums of squared differences and of squares; not finite if there is a NaN or an infinity."""
    error = squares = 0.0
    for i in range(reference.size):
        value = np.float64(reference[i])
        difference = np.float64(stored[i]) - value
        error += difference * difference
        squares += value * value
    return error, squares


@compiled()
def _compare(reference, stored, block):  # type: ignore[no-untyped-def]
    a_bits, b_bits = reference.view(np.int32), stored.view(np.int32)
    values = blocks = 0
    ulp = np.int32(0)
    error = squares = 0.0
    for start in range(0, reference.size, block):
        exact = 0
        for i in range(start, start + block):
            a, b = np.float64(reference[i]), np.float64(stored[i])
            distance = abs(np.int32(_order(a_bits[i]) - _order(b_bits[i])))
            if not (a == a and b == b):
                distance = np.int32(NAN_ULP)
            exact += distance == 0
            ulp = max(ulp, distance)
            if a != b:
                error += (b - a) * (b - a)
            squares += a * a
        values += exact
        blocks += exact == block
    return values, blocks, ulp, error, squares


@compiled()
def _distances(reference, stored, block, found):  # type: ignore[no-untyped-def]
    a_bits, b_bits = reference.view(np.int32), stored.view(np.int32)
    for i in range(reference.size):
        distance = abs(np.int32(_order(a_bits[i]) - _order(b_bits[i])))
        if reference[i] != reference[i] or stored[i] != stored[i]:
            distance = np.int32(NAN_ULP)
        found[i // block] = max(found[i // block], distance)


def _finish(weight: Weight, tensor: StoredTensor, found: _Sum) -> TensorExactness:
    error = math.sqrt(found.error / found.reference) if found.reference else math.sqrt(found.error)
    return TensorExactness(
        weight=weight.name,
        stored_as=tensor.stored_as,
        format=tensor.format,
        block=weight.lattice.block if weight.lattice else None,
        values=weight.size,
        exact_values=found.exact_values,
        blocks=found.blocks,
        exact_blocks=found.exact_blocks,
        max_ulp=found.max_ulp,
        rms_error=error,
        not_representable=found.not_representable,
        off_lattice=found.off_lattice,
        wrong=found.wrong,
        named=found.named,
        coded=weight.coded,
    )
