"""How a runtime holds a weight: in which type, in how many bytes, and how exactly. One rule for every target.

A target hands in what its runtime holds (``Holdings``). The rule:

* Norms, vectors and scalars have one type of numbers. The router, which decides which experts a token
  reaches, is float32 everywhere.
* A matrix on a lattice has the first type of codes and scales that holds its codes as they are, of those with
  the lattice's own blocks if there is one. Such a type has at least as many bits, and each of its blocks lies
  within one of the lattice's, whose scale it repeats.
  Where float16's range is too narrow for scales that the checkpoint stores, the matrix is float32.
* Any other matrix has the type that the user chose for it. One of blocks rounds to a lattice of its own, by
  GGML's rule; where rows are no multiple of its block, a matrix keeps the checkpoint's type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_bits, bf16_floats
from converter.checkpoint.weight import (
    EXACT,
    NEEDS_F32_SCALE,
    OFF_LATTICE,
    Lattice,
    LatticeRows,
    Weight,
    sampled_ranges,
)
from converter.errors import TargetError
from targets import float16
from targets.rounding import largest_code, rounded
from targets.target import PlannedTensor
from targets.writing import NO_BLOCKS, Statuses, Written

#: What a user can do with a matrix on no lattice that float16 does not hold, and that bfloat16 does not.
_OTHER_TYPE: Final = "try --off-lattice bf16"
_WIDEST_TYPE: Final = "try --off-lattice f32"
#: Bytes of a number, by safetensors' dtype.
NUMBER_BYTES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
#: The largest magnitudes that its numbers have.
LARGEST: Final[Mapping[str, float]] = {
    "F32": np.inf,
    "F16": float16.LARGEST,
    "BF16": float((2 - 2.0**-7) * 2.0**127),
}

#: Values whose scales are read at once.
_SCALED_VALUES: Final = 1 << 24

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coded:
    """A runtime's type of codes and scales."""

    #: The runtime's.
    name: str
    #: Of a code, which is signed.
    bits: int
    #: Values of a row to which one scale belongs; 0 for the whole row.
    block: int
    #: Dtype of a scale, ``F16`` or ``F32``.
    scale: str = "F16"
    #: Whether scales may be negative.
    negative: bool = True
    #: Whether a block has a float32 beside its scale.
    sums: bool = False
    #: Dtype whose numbers are the scales of values that are rounded; ``None`` for that of ``scale``. A type
    #: with float32 scales that has ``F16`` here loses what GGML's types lose.
    rounded_scale: str | None = None

    def holds(self, lattice: Lattice, columns: int) -> bool:
        """Whether rows of ``columns`` values with the codes of ``lattice`` are held as they are."""
        if lattice.bits > self.bits:
            return False
        if not self.block:
            return not lattice.block or lattice.block == columns
        return columns % self.block == 0 and (lattice.block or columns) % self.block == 0

    def holds_scales(self, weight: Weight) -> bool:
        """Whether the scales that the checkpoint stores of a weight lose half a step of ``scale`` at most.

        float16 does it up to its largest number. Below its normal numbers half a step is 2**-25, which is
        little beside a normal scale and much where all are as small. So the largest scale must be normal.
        Raises ``CheckpointError`` if they cannot be read."""
        if weight.scales is None or self.scale != "F16":
            return True
        largest = max((float(one.max()) for one in _stored_scales(weight)), default=0)
        return largest == 0 or float16.SMALLEST <= largest <= float16.LARGEST

    def row_parts(self, columns: int) -> tuple[int, int, int]:
        """Bytes of the codes, the scales and the sums of a row. Raises ``ValueError`` for columns that are
        not whole blocks."""
        if self.block and columns % self.block:
            raise ValueError(f"{columns} columns are not a multiple of {self.block}")
        blocks = columns // self.block if self.block else 1
        sums = NUMBER_BYTES["F32"] * blocks if self.sums else 0
        return -(-columns * self.bits // 8), NUMBER_BYTES[self.scale] * blocks, sums

    def rounded(self, values: Floats) -> LatticeRows:
        """Codes and scales of float32 ``values`` (``[rows, columns]``) on no lattice, by GGML's rule
        (``targets.rounding``).

        Codes come of the scale before it becomes a number of its dtype. No block has the status
        ``OFF_LATTICE``. A scale's magnitude is within the dtype's range if no value is above ``largest``.
        Raises ``ValueError`` for columns that are not whole blocks.
        """
        codes, scales = rounded(values, self.bits, self.block, negative=self.negative)
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16).astype(np.float32)
        if self._rounded_scale == "F16":
            return LatticeRows(codes, halves, np.full(scales.shape, EXACT, np.uint8))
        status = np.where(halves == scales, np.uint8(EXACT), np.uint8(NEEDS_F32_SCALE))
        return LatticeRows(codes, scales, status)

    @property
    def largest(self) -> float:
        """The largest magnitude of values that ``rounded`` gives a scale within the range of its dtype."""
        return largest_code(self.bits, negative=self.negative) * LARGEST[self._rounded_scale]

    @property
    def _rounded_scale(self) -> str:
        return self.rounded_scale or self.scale


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a runtime holds, and what the user chose."""

    #: The target's name.
    target: str
    #: The types of codes and scales, the preferred one first.
    coded: tuple[Coded, ...]
    #: Names of types of numbers, by safetensors' dtype.
    numbers: Mapping[str, str]
    #: The type of norms, vectors and scalars.
    vectors: str
    #: The type of matrices whose codes no type holds.
    off_lattice: str
    #: What a user can do where float16 does not hold the scales of a lattice, and where it does not hold a
    #: norm or a vector; empty for nothing.
    wider_scales: str = ""
    wider_vectors: str = ""

    def find(self, name: str) -> Coded | None:
        """The type of codes and scales that is called ``name``; ``None`` for numbers."""
        return next((one for one in self.coded if one.name == name), None)

    def dtype(self, name: str) -> str:
        """Safetensors' dtype of a type of numbers."""
        return next(dtype for dtype, one in self.numbers.items() if one == name)

    def holding(self, weight: Weight, *, negative: bool = False) -> Coded | None:
        """The type that holds the codes of a matrix as they are, and its scales within half a step of theirs,
        ``None`` if there is none. ``negative`` says that a scale must be taken with its sign. Raises
        ``CheckpointError`` if scales cannot be read."""
        held = self._holding_codes(weight, negative=negative)
        return held if held and held.holds_scales(weight) else None

    def _holding_codes(self, weight: Weight, *, negative: bool = False) -> Coded | None:
        """The same, whatever the scales are."""
        if not is_matrix(weight) or weight.lattice is None or weight.codes is None:
            return None
        own = weight.lattice.block
        for one in sorted(self.coded, key=lambda one: one.block != own):
            if one.holds(weight.lattice, weight.columns) and (one.negative or not negative):
                return one
        return None

    def type_of(self, weight: Weight, *, negative: bool = False) -> str:
        """The type of a weight, by the rule; ``negative`` as for ``holding``."""
        if not is_matrix(weight):
            return self.numbers["F32"] if weight.router else self.vectors
        if held := self._holding_codes(weight, negative=negative):
            return held.name if held.holds_scales(weight) else self.numbers["F32"]
        rounded = self.find(self.off_lattice)
        if rounded is not None and rounded.block and weight.columns % rounded.block:
            return self.numbers.get(weight.stored, self.numbers["F32"])
        return self.off_lattice

    def codes(self, weight: Weight, name: str, start: int, stop: int) -> LatticeRows | None:
        """The codes of rows with a scale for each block of the type ``name``, ``None`` if it does not hold
        them as they are. Raises ``TargetError`` for a scale that the type would turn into an infinity, and
        ``CheckpointError`` if the weight cannot be read."""
        held = self._keeping(weight, name)
        if held is None or weight.codes is None:
            return None
        rows = weight.codes(start, stop)
        if float16.out_of_range(rows.scales, LARGEST[held.scale]):
            raise self._out_of_range(weight, _scales_of(held), self.wider_scales)
        blocks = weight.columns // held.block if held.block else 1
        if rows.scales.shape[1] == blocks:
            return rows
        times = blocks // rows.scales.shape[1]
        return LatticeRows(
            rows.codes, np.repeat(rows.scales, times, axis=1), np.repeat(rows.status, times, axis=1)
        )

    def kept_scales(self, weight: Weight, name: str) -> str | None:
        """Dtype of the scales of the type ``name``, ``None`` if it does not hold the weight's own codes."""
        held = self._keeping(weight, name)
        return held.scale if held else None

    def _keeping(self, weight: Weight, name: str) -> Coded | None:
        """The type ``name`` if a weight's own codes are written in it, else ``None``."""
        held, preferred = self.find(name), self._holding_codes(weight)
        if held is None or preferred is None or weight.lattice is None:
            return None
        # a type of more bits than are needed is another tool's, which rounds
        if held.bits != preferred.bits or not held.holds(weight.lattice, weight.columns):
            return None
        return held

    def coded_rows(self, weight: Weight, coded: Coded, start: int, stop: int) -> tuple[LatticeRows, Statuses]:
        """Rows in a type of codes and scales, and the status of each of their blocks on a lattice.

        They have the weight's own codes where the type holds them. Else they are rounded, and no block counts
        as one on a lattice. Raises ``TargetError`` for values that the type would turn into infinities, and
        ``CheckpointError`` if the weight cannot be read.
        """
        rows = self.codes(weight, coded.name, start, stop)
        if rows is None:
            values = weight.floats(start, stop)
            if float16.out_of_range(values, coded.largest):
                raise self._out_of_range(weight, _scales_of(coded), _OTHER_TYPE)
            return coded.rounded(values), NO_BLOCKS
        statuses = rows.status.reshape(-1)
        if coded.scale == "F32":  # which holds every scale: nothing is rounded that is on the lattice
            statuses = np.where(statuses == OFF_LATTICE, statuses, np.uint8(EXACT))
        return rows, statuses

    def check_numbers(self, weight: Weight, name: str, values: Floats) -> None:
        """Raise ``TargetError`` if the type of numbers ``name`` would turn one of a weight's ``values`` into
        an infinity."""
        dtype = self.dtype(name)
        if float16.out_of_range(values, LARGEST[dtype]):
            remedy = _OTHER_TYPE if dtype == "F16" else _WIDEST_TYPE
            raise self._out_of_range(weight, name, remedy if is_matrix(weight) else self.wider_vectors)

    def _out_of_range(self, weight: Weight, held: str, remedy: str) -> TargetError:
        return TargetError(
            f"{self.target}: {weight.name}: a value is beyond the range of {held}; "
            f"{remedy or f'it cannot be stored in {self.target}'}"
        )

    def row_parts(self, name: str, columns: int) -> tuple[int, int, int]:
        """Bytes of a row: of codes or numbers, of scales and of sums. Raises ``ValueError`` for codes whose
        columns are not whole blocks."""
        if held := self.find(name):
            return held.row_parts(columns)
        return columns * NUMBER_BYTES[self.dtype(name)], 0, 0

    def row_bytes(self, name: str, columns: int) -> int:
        """Bytes of a row, all parts together; raises as ``row_parts``."""
        return sum(self.row_parts(name, columns))

    def is_exact(self, weight: Weight, name: str) -> bool:
        """Whether the type holds every value of the checkpoint bit for bit. What depends on the values is
        judged from rows spread over the weight; raises ``CheckpointError`` if one is damaged."""
        ranges = sampled_ranges(weight.rows, weight.columns)
        if held := self.find(name):
            if weight.lattice is None or not held.holds(weight.lattice, weight.columns):
                return False
            return held.scale == "F32" or not any(_needs_f32(weight, *rows) for rows in ranges)
        dtype = self.dtype(name)
        if dtype in ("F32", weight.stored):
            return True
        return all(_fits(weight.floats(*rows), dtype) for rows in ranges)

    def planned(self, weight: Weight, stored_as: str, name: str) -> PlannedTensor:
        """The plan's line for a weight that is held in the type ``name`` under the name ``stored_as``.
        Raises as ``is_exact`` and ``row_parts`` do."""
        return PlannedTensor(
            weight.name,
            stored_as,
            weight.shape,
            name,
            weight.rows * self.row_bytes(name, weight.columns),
            self.is_exact(weight, name),
            scales=self.kept_scales(weight, name),
        )

    def warnings(self, weights: Iterable[Weight]) -> list[str]:
        """Lines about the matrices that are not held as codes of their lattice; none if all are."""
        matrices = [weight for weight in weights if is_matrix(weight)]
        told = [line for weight in matrices for line in self._beyond(weight)] + self._coarse(matrices)
        other = [weight for weight in matrices if self._holding_codes(weight) is None]
        for off, what in (
            ([one for one in other if one.lattice is None], "lie on no lattice"),
            (
                [one for one in other if one.lattice is not None],
                f"have codes that no type of {self.target} holds",
            ),
        ):
            if off:
                share = sum(one.size for one in off) / sum(one.size for one in matrices)
                told.append(
                    f"{self.target}: {share:.2%} of the weights ({len(off)} of {len(matrices)} matrices) "
                    f"{what}: {'; '.join(self._instead(off))}"
                )
        return told

    def _beyond(self, weight: Weight) -> list[str]:
        """A line about a matrix that is float32 because of its scales."""
        held = self._holding_codes(weight)
        if held is None or held.holds_scales(weight):
            return []
        number = self.numbers["F32"]
        sizes = [weight.rows * self.row_bytes(name, weight.columns) for name in (number, held.name)]
        return [
            f"{self.target}: {weight.name}: its scales are outside float16's range "
            f"({float16.SMALLEST:.1e} to {float16.LARGEST:.0f}): stored as {number}, without loss, in "
            f"{sizes[0]} bytes instead of the {sizes[1]} of {held.name}"
        ]

    def _coarse(self, matrices: Iterable[Weight]) -> list[str]:
        """A line about scales that are so small that float16 holds few bits of them."""
        found: dict[str, int] = {}
        lost, largest = 0, 0.0
        for weight in matrices:
            held = self.holding(weight)
            if held is None or held.scale != "F16":
                continue
            for scales in _stored_scales(weight):
                values, made = float16.coarse(scales)
                if values.size:
                    found[weight.name] = found.get(weight.name, 0) + values.size
                    errors = np.abs(made - values)[made != 0] / values[made != 0]
                    lost += int(np.count_nonzero(made == 0))
                    largest = max(largest, float(errors.max(initial=0)))
        if not found:
            return []
        return [
            f"{self.target}: {sum(found.values())} scales of {len(found)} matrices (the first is "
            f"{next(iter(found))}) are below float16's normal numbers, {float16.SMALLEST:.1e}, and lose more "
            f"than half a step of those: {lost} become 0, the others are off by {largest:.2%} at most"
        ]

    def _instead(self, off: Sequence[Weight]) -> list[str]:
        """How matrices are stored whose codes are not held."""
        rounded = self.find(self.off_lattice)
        block = rounded.block if rounded else 0
        odd = [weight for weight in off if block and weight.columns % block]
        packed = [weight for weight in odd if weight.is_packed]
        odd = [weight for weight in odd if not weight.is_packed]
        parts = []
        if rest := len(off) - len(odd) - len(packed):
            parts.append(f"{rest} are stored as {self.off_lattice}")
        if packed:
            parts.append(
                f"{len(packed)} are stored as {self.numbers['F32']}, without loss, as their rows fit no "
                f"blocks (the first is {packed[0].name}, with an input dimension of {packed[0].columns})"
            )
        if odd:
            parts.append(
                f"{len(odd)} keep the checkpoint's type, as their rows are no multiple of {block} (the first "
                f"is {odd[0].name}, with an input dimension of {odd[0].columns})"
            )
        return parts

    def losses(self, weights: Mapping[str, Weight], written: Written, why: str) -> list[str]:
        """What the whole reading showed: a line for each weight with blocks that lie on no lattice, and one
        on blocks whose scale is rounded. ``why`` says what does not hold it."""
        told = []
        for name, count in written.off_lattice.items():
            share = written.off_values[name] / weights[name].size
            told.append(
                f"{self.target}: {name}: {count} blocks ({share:.2%} of its weights) lie on no lattice and "
                "are rounded to the nearest"
            )
        if written.rounded:
            told.append(
                f"{self.target}: {written.rounded} of {written.blocks} blocks have a scale that {why}"
            )
        return told


def is_matrix(weight: Weight) -> bool:
    """Whether the rules for matrices hold for a weight; the rest is norms, vectors, scalars, the router."""
    return len(weight.shape) > 1 and not weight.router


def _stored_scales(weight: Weight) -> Iterator[Floats]:
    """The scales that the checkpoint stores of a weight, by ranges of rows: there is one for many values."""
    if weight.scales is not None:
        for start, stop in weight.row_ranges(_SCALED_VALUES):
            yield weight.scales(start, stop)


def _scales_of(coded: Coded) -> str:
    """How a user is told of the scales of a type."""
    return f"{coded.name}'s float16 scales"


def _needs_f32(weight: Weight, start: int, stop: int) -> bool:
    assert weight.codes is not None
    return bool(np.any(weight.codes(start, stop).status == NEEDS_F32_SCALE))


def _fits(values: Floats, dtype: str) -> bool:
    """Whether all values are numbers of a dtype of two bytes."""
    if dtype == "BF16":
        return bool(np.all(bf16_floats(bf16_bits(values)) == values))
    return not float16.out_of_range(values) and bool(np.all(values.astype(np.float16) == values))


def naively_rounded(weight: Weight, coded: Coded) -> Weight:
    """A weight that lies on a lattice, with the codes of ``coded.rounded`` instead of its own. It is the
    weight itself if that lies on none, if its rows are no whole blocks of ``coded``, or if ``coded`` does not
    hold its scales."""
    if weight.lattice is None or (coded.block and weight.columns % coded.block):
        return weight
    if not coded.holds_scales(weight):
        return weight

    def codes(start: int, stop: int) -> LatticeRows:
        return coded.rounded(weight.floats(start, stop))

    return replace(weight, lattice=Lattice(coded.bits, coded.block), codes=codes, scales=None)


def held_as(name: str, coded: Coded | None, rows: int, columns: int) -> Weight:
    """A made-up matrix that the type ``coded`` holds as it is, without any one on no lattice: for small
    models that stand for real ones. Raises ``ValueError`` for columns that are not whole blocks."""
    bits, block = (coded.bits, coded.block or columns) if coded else (4, columns)
    if columns % block:
        raise ValueError(f"{columns} columns are not a multiple of {block}")
    scale = np.float32(0.125)
    codes = (np.arange(rows * columns) % 2**bits - 2 ** (bits - 1)).astype(np.int8).reshape(rows, columns)
    scales = np.full((rows, columns // block), scale, np.float32)
    status = np.full(scales.shape, EXACT, np.uint8)

    def read(start: int, stop: int) -> LatticeRows:
        return LatticeRows(codes[start:stop], scales[start:stop], status[start:stop])

    lattice = Lattice(bits, coded.block) if coded else None
    return Weight(
        name,
        name,
        codes.shape,
        "F32",
        lambda start, stop: codes[start:stop] * scale,
        lattice,
        read if coded else None,
    )
