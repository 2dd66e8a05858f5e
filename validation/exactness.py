"""Exactness of an artifact's weights, measured from the written file.

Both sides are compared in the checkpoint's own precision: bfloat16 (``bf16``), in which QAT checkpoints are
published, float16 (``f16``) or float32 (``f32``). Both are rounded to it, which changes nothing on the
checkpoint's. Where it stores codes and scales, a value is their product in float32. A value is exact if both
sides are equal, a block if all its values are. The distance of two values is counted in ulps: the number of
steps from one number of that precision to the other. Negative zero and zero are the same number, so the steps
on both sides of zero join there. NaN is equal to nothing, and ``NAN_ULP`` from everything.

A lattice of numbers is one of bfloat16 products. So its blocks are compared in bfloat16, and in f32 and f16
checkpoints the blocks off the lattice in the checkpoint's own precision. The ulps of such a matrix are those
of bfloat16, and one where values differ by less.

A block of a lattice weight is of one of four classes:

* *exact*;
* *scale not representable*: a float32 scale reproduces the block, and no scale of the artifact's type does.
  The codes are the trained ones and the stored scale is the nearest. Where the checkpoint stores numbers,
  each value is off by at most one ulp of bfloat16. Where it stores codes and scales, the scale is off by at
  most half a step of float16, which below its normal numbers is 2**-25;
* *off the lattice*: no float32 scale reproduces the checkpoint's block. It holds what the target's rule
  makes;
* *wrong*: everything else.

Of blocks that are not exact it is also told whether the codes are the checkpoint's, and how far their scale
is from the checkpoint's: one factor then makes every value of the other.

Any other weight is a norm, a scalar or a matrix on no lattice. A value of it is right if it is what the
target's rule makes of the checkpoint's, bit for bit, and otherwise wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import NEEDS_F32_SCALE, OFF_LATTICE, LatticeRows, Weight
from converter.errors import ValidationError
from converter.system.compiled import compiled
from converter.system.processors import processors
from converter.system.progress import StageProgress, no_progress
from targets.target import StoredTensor
from validation.parallel import in_flight

Task = TypeVar("Task")
Result = TypeVar("Result")

#: The precisions in which steps are counted, each with the number that stands for it in compiled code.
_KINDS: Final[Mapping[str, int]] = {"bf16": 0, "f16": 1, "f32": 2}
#: Distance that stands for NaN: all steps of a precision from minus infinity to infinity.
NAN_ULP: Final[Mapping[str, int]] = {"bf16": 2 * 0x7F80, "f16": 2 * 0x7C00, "f32": 2 * 0x7F800000}
#: The precision of a checkpoint's numbers, by safetensors' dtype.
_PRECISIONS: Final[Mapping[str, str]] = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
#: How far the products of codes with one scale may be from the values, as float32 rounds both.
_ROUNDING = 2.0**-22
#: Half a step of float16, relative, and what is lost in finding it.
_HALF_STEP = 2.0**-11 * 1.001
#: The same below float16's normal numbers, where all steps are as large.
_HALF_STEP_BELOW = 2.0**-25 * 1.001
#: Blocks of a tensor that are named one by one.
NAMED = 16


@dataclass(frozen=True, slots=True)
class Block:
    """One block that is not exact."""

    #: The row in the weight.
    row: int
    #: The block's place in the row.
    index: int
    #: The largest distance of its values, in ulps of the tensor's ``precision``.
    ulp: int
    #: Its class.
    kind: str


@dataclass(frozen=True, slots=True)
class TensorExactness:
    """One weight of the checkpoint against its tensor in the artifact."""

    weight: str
    stored_as: str
    type: str
    #: Values that share a scale; 0 for a whole row, ``None`` for a weight on no lattice, which has no blocks.
    block: int | None
    values: int
    #: How many of ``values`` are exact.
    exact_values: int
    blocks: int
    exact_blocks: int
    #: The largest distance of a value, in ulps of ``precision``.
    max_ulp: int
    #: Root mean square of the differences over that of the checkpoint's values, both of unrounded values.
    rms_error: float
    #: Blocks of the class *scale not representable*.
    not_representable: int = 0
    #: Blocks of the class *off the lattice*.
    off_lattice: int = 0
    #: Wrong blocks; for a weight without blocks, wrong values.
    wrong: int = 0
    #: The first blocks that are not exact.
    named: tuple[Block, ...] = ()
    #: The weight's own ``coded``.
    coded: bool = False
    #: Blocks whose codes are the checkpoint's, the exact ones among them.
    equal_codes: int = 0
    #: The largest relative error of the scales of these blocks.
    max_scale_error: float = 0.0
    #: In whose steps distances are counted: ``bf16``, ``f16`` or ``f32``.
    precision: str = "bf16"
    #: Values that are no numbers, in the artifact or in the checkpoint.
    nan_values: int = 0

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
        """Share of exact blocks of all lattice weights. ``None`` if the checkpoint has none."""
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
        """Share of the values of weights without blocks that are right. ``None`` if there are none."""
        values = sum(tensor.values for tensor in self.off_lattice)
        return 1 - sum(tensor.wrong for tensor in self.off_lattice) / values if values else None

    @property
    def on_lattice_fraction(self) -> float | None:
        """Share of the coded weights' values that lie on a lattice in the checkpoint, the same as the share
        of their blocks. ``None`` if no weight is coded."""
        coded = [tensor for tensor in self.tensors if tensor.coded]
        values = sum(tensor.values for tensor in coded)
        return sum(tensor.values_on_lattice for tensor in coded) / values if values else None

    def count(self, name: str) -> int:
        """The sum of a number of the lattice weights, such as ``exact_blocks``."""
        return sum(getattr(tensor, name) for tensor in self.lattice)


def largest_ulps(tensors: Iterable[TensorExactness]) -> dict[str, int]:
    """The largest distance by the precision that it is counted in."""
    found: dict[str, int] = {}
    for tensor in tensors:
        found[tensor.precision] = max(found.get(tensor.precision, 0), tensor.max_ulp)
    return dict(sorted(found.items()))


def measure(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    progress: StageProgress = no_progress,
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
    """What adds up over row ranges."""

    exact_values: int = 0
    blocks: int = 0
    exact_blocks: int = 0
    max_ulp: int = 0
    #: Sum of the squared differences.
    error: float = 0.0
    #: Sum of the reference's squares.
    reference: float = 0.0
    not_representable: int = 0
    off_lattice: int = 0
    wrong: int = 0
    named: tuple[Block, ...] = ()
    equal_codes: int = 0
    scale_error: float = 0.0
    nan_values: int = 0

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
            self.equal_codes + other.equal_codes,
            max(self.scale_error, other.scale_error),
            self.nan_values + other.nan_values,
        )


def _compare_rows(weight: Weight, tensor: StoredTensor, start: int, stop: int) -> _Sum:
    shape = (stop - start, weight.columns)
    ours = np.ascontiguousarray(weight.floats(start, stop), np.float32).reshape(shape)
    theirs = np.ascontiguousarray(tensor.floats(start, stop), np.float32).reshape(shape)
    block = (weight.lattice.block or weight.columns) if weight.lattice else weight.columns
    same = compare_blocks(ours, theirs, block, precision_of(weight))
    if weight.lattice is None:
        right = _right(tensor, theirs, start, stop)
        wrong = ours.size - (same.values if right is None else int(np.count_nonzero(right)))
        return _Sum(same.values, 0, 0, same.ulp, same.error, same.squares, wrong=wrong, nan_values=same.nans)
    count = ours.size // block
    found = _Sum(
        same.values,
        count,
        same.blocks,
        same.ulp,
        same.error,
        same.squares,
        equal_codes=same.blocks,
        nan_values=same.nans,
    )
    coarser = _own_precision(weight) != precision_of(weight) and not np.array_equal(ours, theirs)
    if same.blocks == count and not coarser:
        return found
    assert weight.codes is not None
    rows = weight.codes(start, stop)
    if coarser:
        found = replace(found, **_recounted(weight, rows, ours, theirs))
    return replace(found, **_classes(weight, tensor, rows, ours, theirs, start, stop))


def precision_of(weight: Weight) -> str:
    """In whose steps the distances of a weight's values are counted."""
    if weight.lattice is not None and not weight.is_packed:
        return "bf16"
    return _own_precision(weight)


def _own_precision(weight: Weight) -> str:
    """That of the checkpoint's numbers, of products of codes and scales float32."""
    return _PRECISIONS.get(weight.stored, "f32")


def _recounted(
    weight: Weight, rows: LatticeRows, ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> dict[str, Any]:
    """What is exact of rows whose blocks off the lattice have a finer precision than the others."""
    block = ours.size // rows.status.size
    off = rows.status.reshape(-1) == OFF_LATTICE
    a, b = ours.reshape(-1, block), theirs.reshape(-1, block)
    parts = (
        compare_blocks(a[~off], b[~off], block, precision_of(weight)),
        compare_blocks(a[off], b[off], block, _own_precision(weight)),
    )
    exact = sum(part.blocks for part in parts)
    return {
        "exact_values": sum(part.values for part in parts),
        "exact_blocks": exact,
        "equal_codes": exact,
        "max_ulp": int(_block_ulps(weight, rows, ours, theirs).max(initial=0)),
    }


def _block_ulps(
    weight: Weight, rows: LatticeRows, ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The largest distance in every block, int64 ``[rows, blocks]``, 0 for exact ones alone."""
    block, precision, own = ours.size // rows.status.size, precision_of(weight), _own_precision(weight)
    ulps = block_distances(ours, theirs, block, precision).reshape(rows.status.shape)
    if own == precision:
        return ulps
    finer = block_distances(ours, theirs, block, own).reshape(rows.status.shape)
    return np.where(rows.status == OFF_LATTICE, np.where(finer > 0, np.maximum(ulps, 1), 0), ulps)


def _right(
    tensor: StoredTensor, stored: NDArray[np.float32], start: int, stop: int
) -> NDArray[np.bool_] | None:
    """Which of the artifact's values ``[rows, columns]`` are what the rule makes, bit for bit. ``None`` for a
    type that has no rule."""
    if tensor.rule is None:
        return None
    expected = np.ascontiguousarray(tensor.rule(start, stop), np.float32).reshape(stored.shape)
    right: NDArray[np.bool_] = expected.view(np.int32) == stored.view(np.int32)
    return right


def _classes(
    weight: Weight,
    tensor: StoredTensor,
    rows: LatticeRows,
    ours: NDArray[np.float32],
    theirs: NDArray[np.float32],
    start: int,
    stop: int,
) -> dict[str, Any]:
    """Numbers of blocks by class, and the first that are not exact, of ``rows`` that are not all exact."""
    ulps = _block_ulps(weight, rows, ours, theirs)
    errors = scale_errors(rows, theirs)
    right = _right(tensor, theirs, start, stop)
    as_ruled = np.zeros(ulps.size, np.bool_) if right is None else right.reshape(ulps.size, -1).all(axis=1)
    as_ruled = as_ruled.reshape(ulps.shape)
    inexact = ulps > 0
    apart = errors * np.abs(rows.scales)
    normal = errors <= _HALF_STEP
    near = normal | (apart <= _HALF_STEP_BELOW) if weight.is_packed else ulps <= 1
    narrow = inexact & as_ruled & (rows.status == NEEDS_F32_SCALE) & near
    off = inexact & as_ruled & (rows.status == OFF_LATTICE)
    wrong = inexact & ~narrow & ~off
    # the nearest scale of the type, but below its normal range, where its steps are coarse
    coarse = inexact & as_ruled & (rows.status == NEEDS_F32_SCALE) & (~normal if weight.is_packed else wrong)
    kinds = np.select(
        [coarse, narrow, off],
        ["scale below the type's range", "scale not representable", "off the lattice"],
        "wrong",
    )
    # wrong ones first: they are what a reader looks for
    places = [*zip(*np.nonzero(wrong), strict=True), *zip(*np.nonzero(narrow | off), strict=True)][:NAMED]
    recoded = inexact & np.isfinite(errors)
    return {
        "equal_codes": int(np.count_nonzero(~inexact | recoded)),
        "scale_error": float(errors[recoded].max(initial=0)),
        "not_representable": int(np.count_nonzero(narrow)),
        "off_lattice": int(np.count_nonzero(off)),
        "wrong": int(np.count_nonzero(wrong)),
        "named": tuple(
            Block(start + int(row), int(index), int(ulps[row, index]), str(kinds[row, index]))
            for row, index in places
        ),
    }


def scale_errors(rows: LatticeRows, stored: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far the scales of stored values, float32 ``[rows, columns]``, are from those of ``rows``, relative:
    ``[rows, blocks]``, infinite where no scale makes a block's values of its codes."""
    found = np.empty(rows.scales.size, np.float64)
    codes = np.ascontiguousarray(rows.codes).reshape(-1)
    scales = np.ascontiguousarray(rows.scales, np.float32).reshape(-1)
    _scale_errors(codes, scales, stored.reshape(-1), found)
    return found.reshape(rows.scales.shape)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arrays of the same shape, value by value."""

    #: How many values are exact, and how many whole blocks.
    values: int
    blocks: int
    #: The largest distance.
    ulp: int
    #: Sum of the squared differences, and of the squares of the reference.
    error: float
    squares: float
    #: Values that are NaN on one side or both.
    nans: int


def compare_blocks(
    reference: NDArray[np.float32], stored: NDArray[np.float32], block: int, precision: str = "bf16"
) -> Comparison:
    """Compare float32 ``[rows, columns]`` arrays whose columns are whole blocks, both rounded to a
    ``precision`` (``bf16``, ``f16`` or ``f32``). Raises ``ValueError`` for other shapes."""
    if reference.shape != stored.shape or reference.shape[1] % block:
        raise ValueError(f"shapes {reference.shape} and {stored.shape} in blocks of {block}")
    ours, theirs = reference.reshape(-1), stored.reshape(-1)
    error, squares = _squares(ours, theirs)
    same = bool(_all_exact(ours, theirs) if precision == "bf16" else np.array_equal(ours, theirs))
    if same and np.isfinite(error):  # the rule: two passes without a branch
        return Comparison(ours.size, ours.size // block, 0, float(error), float(squares), 0)
    values, blocks, ulp, error, squares, nans = _compare(
        ours, theirs, block, _KINDS[precision], NAN_ULP[precision]
    )
    return Comparison(int(values), int(blocks), int(ulp), float(error), float(squares), int(nans))


def block_distances(
    reference: NDArray[np.float32], stored: NDArray[np.float32], block: int, precision: str = "bf16"
) -> NDArray[np.int64]:
    """The largest distance in ulps in every block, int64 ``[values / block]``, of arrays as in
    ``compare_blocks``."""
    found = np.zeros(reference.size // block, np.int64)
    _distances(reference.reshape(-1), stored.reshape(-1), block, _KINDS[precision], NAN_ULP[precision], found)
    return found


@compiled(inline="always")
def _order(bits):  # type: ignore[no-untyped-def]
    """The place of a float32, given by its bits and rounded to bfloat16 (ties to even), among all bfloat16
    numbers, zero being 0."""
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    even = np.int32((magnitude >> np.int32(16)) & np.int32(1))
    rounded = np.int32(np.int32(magnitude + np.int32(0x7FFF) + even) >> np.int32(16))
    return np.int32(-rounded) if bits < 0 else rounded


@compiled(inline="always")
def _half_order(bits):  # type: ignore[no-untyped-def]
    """The same among all float16 numbers; what is beyond their range is their infinity."""
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    if magnitude < np.int32(0x38800000):  # below 2**-14 all steps are of 2**-24
        rounded = np.int32(np.rint(np.float32(magnitude.view(np.float32) * np.float32(2.0**24))))
    else:
        even = np.int32((magnitude >> np.int32(13)) & np.int32(1))
        rebiased = np.int32(magnitude - np.int32(0x38000000))
        rounded = min(np.int32((rebiased + np.int32(0xFFF) + even) >> np.int32(13)), np.int32(0x7C00))
    return np.int32(-rounded) if bits < 0 else np.int32(rounded)


@compiled(inline="always")
def _distance(a, b, kind):  # type: ignore[no-untyped-def]
    """Steps between two float32, given by their bits, rounded to a precision of ``_KINDS``."""
    if kind == 0:
        return np.int64(abs(np.int32(_order(a) - _order(b))))
    if kind == 1:
        return np.int64(abs(np.int32(_half_order(a) - _half_order(b))))
    first = np.int64(a & np.int32(0x7FFFFFFF))
    second = np.int64(b & np.int32(0x7FFFFFFF))
    return abs((-first if a < 0 else first) - (-second if b < 0 else second))


@compiled()
def _scale_errors(codes, scales, stored, found):  # type: ignore[no-untyped-def]
    block = codes.size // scales.size
    for index in range(scales.size):
        start = index * block
        largest = start
        for i in range(start + 1, start + block):
            if abs(np.int32(codes[i])) > abs(np.int32(codes[largest])):
                largest = i
        code = np.float64(codes[largest])
        scale = np.float64(stored[largest]) / code if code else np.float64(0)
        equal = True
        for i in range(start, start + block):
            product = scale * np.float64(codes[i])
            if not abs(np.float64(stored[i]) - product) <= _ROUNDING * abs(product):
                equal = False
        if not equal:
            found[index] = np.inf
        elif scale == np.float64(scales[index]) or not code:
            found[index] = 0
        else:
            own = np.float64(scales[index])
            found[index] = abs(scale - own) / abs(own) if own else np.inf


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
def _compare(reference, stored, block, kind, nan_ulp):  # type: ignore[no-untyped-def]
    a_bits, b_bits = reference.view(np.int32), stored.view(np.int32)
    values = blocks = nans = 0
    ulp = np.int64(0)
    error = squares = 0.0
    for start in range(0, reference.size, block):
        exact = 0
        for i in range(start, start + block):
            a, b = np.float64(reference[i]), np.float64(stored[i])
            distance = _distance(a_bits[i], b_bits[i], kind)
            if not (a == a and b == b):
                distance = np.int64(nan_ulp)
                nans += 1
            exact += distance == 0
            ulp = max(ulp, distance)
            if a != b:
                error += (b - a) * (b - a)
            squares += a * a
        values += exact
        blocks += exact == block
    return values, blocks, ulp, error, squares, nans


@compiled()
def _distances(reference, stored, block, kind, nan_ulp, found):  # type: ignore[no-untyped-def]
    a_bits, b_bits = reference.view(np.int32), stored.view(np.int32)
    for i in range(reference.size):
        distance = _distance(a_bits[i], b_bits[i], kind)
        if reference[i] != reference[i] or stored[i] != stored[i]:
            distance = np.int64(nan_ulp)
        found[i // block] = max(found[i // block], distance)


def _finish(weight: Weight, tensor: StoredTensor, found: _Sum) -> TensorExactness:
    error = math.sqrt(found.error / found.reference) if found.reference else math.sqrt(found.error)
    return TensorExactness(
        weight=weight.name,
        stored_as=tensor.stored_as,
        type=tensor.type,
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
        equal_codes=found.equal_codes,
        max_scale_error=found.scale_error,
        precision=precision_of(weight),
        nan_values=found.nan_values,
    )
