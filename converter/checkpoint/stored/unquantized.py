"""Unquantized safetensors (BF16, F16, F32) whose matrices may lie on a 4-bit lattice.

``google/gemma-4-SIZE-it-qat-q4_0-unquantized`` stores every matrix as ``bf16(scale * code)``. Whether a
matrix lies on such a lattice is judged when the checkpoint is opened, from rows spread over the matrix. So
opening stays fast however large the checkpoint is. F16 and F32 files are on the same lattice if their values
are bfloat16 values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import BLOCK, bf16_bits, bf16_floats, recover
from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.stored.form import Form, Layout, Parameters, quantization_of
from converter.checkpoint.stored.modules import as_floats, check_dtype
from converter.checkpoint.weight import EXACT, OFF_LATTICE, Lattice, LatticeRows, Weight, sampled_ranges
from converter.errors import CheckpointError

#: Share of the judged blocks that must be on a lattice.
ON_LATTICE_SHARE: Final = 0.99
_LATTICE: Final = Lattice(bits=4, block=BLOCK)


def recognises(config: Mapping[str, object]) -> bool:
    """Whether ``config.json`` announces no packed weights."""
    return quantization_of(config) is None


def layout(config: Mapping[str, object]) -> Layout:
    """Every weight is one tensor of its own name; there are no scales of activations."""
    return Layout(
        parameters=lambda name: (Parameters({"weight": name}),),
        weight=lambda name, shape, tensors: make_weight(name, tensors["weight"], shape),
        expected=expected_weight,
    )


def make_weight(name: str, tensor: SourceTensor, expected: tuple[int, ...] | None = None) -> Weight:
    """The weight of one tensor. It reads a sample of its rows, unless its shape is not the one ``expected``:
    the row of a hostile file may be larger than memory. Raises ``CheckpointError``."""
    check_dtype(tensor)
    matrix = len(tensor.shape) >= 2 and tensor.shape == (expected or tensor.shape)
    on_lattice = matrix and tensor.columns % BLOCK == 0 and lies_on_lattice(tensor)
    return Weight(
        name=name,
        source=tensor.name,
        shape=tensor.shape,
        stored=tensor.dtype,
        floats=_floats(tensor),
        lattice=_LATTICE if on_lattice else None,
        codes=_codes(tensor) if on_lattice else None,
        coded=len(tensor.shape) >= 2,
    )


def expected_weight(name: str, shape: tuple[int, ...]) -> Weight:
    """A weight as training leaves it, in bfloat16 and on its lattice if it is a matrix. Zeros stand for its
    values."""
    columns = shape[-1] if shape else 1
    on_lattice = len(shape) >= 2 and columns % BLOCK == 0

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return np.zeros((stop - start, columns), np.float32)

    def codes(start: int, stop: int) -> LatticeRows:
        rows, blocks = stop - start, columns // BLOCK
        return LatticeRows(
            np.zeros((rows, columns), np.int8),
            np.ones((rows, blocks), np.float32),
            np.full((rows, blocks), EXACT, np.uint8),
        )

    return Weight(
        name=name,
        source=name,
        shape=shape,
        stored="BF16",
        floats=floats,
        lattice=_LATTICE if on_lattice else None,
        codes=codes if on_lattice else None,
        coded=len(shape) >= 2,
    )


def lies_on_lattice(tensor: SourceTensor) -> bool:
    """Whether nearly all sampled blocks of 32 values are reproduced by codes and a scale.

    Blocks with a single magnitude lie on every lattice and tell nothing, so they do not count.
    """
    ranges = sampled_ranges(tensor.rows, tensor.columns)
    parts = [tensor.read_rows(start, stop) for start, stop in ranges]
    if not parts:
        return False
    values = np.concatenate(parts)
    try:
        off = recovered(values).status.reshape(-1) == OFF_LATTICE
    except ValueError:
        for (start, _), part in zip(ranges, parts, strict=True):
            _check_finite(tensor, part, start)
        raise
    if not off.any():
        return True
    magnitudes = np.abs(as_floats(values)).reshape(-1, BLOCK)
    smallest = np.where(magnitudes > 0, magnitudes, np.inf).min(axis=1)
    telling = smallest < magnitudes.max(axis=1)
    return bool(np.count_nonzero(off & telling) <= (1 - ON_LATTICE_SHARE) * np.count_nonzero(telling))


def _floats(tensor: SourceTensor) -> Callable[[int, int], NDArray[np.float32]]:
    def floats(start: int, stop: int) -> NDArray[np.float32]:
        values = tensor.read_rows(start, stop)
        _check_finite(tensor, values, start)
        return as_floats(values)

    return floats


def _codes(tensor: SourceTensor) -> Callable[[int, int], LatticeRows]:
    def codes(start: int, stop: int) -> LatticeRows:
        values = tensor.read_rows(start, stop)
        try:
            rows = recovered(values)
        except ValueError:
            _check_finite(tensor, values, start)
            raise
        _check_recovered(tensor, values[:1], rows, start)
        return rows

    return codes


def _check_recovered(
    tensor: SourceTensor, values: NDArray[np.generic], rows: LatticeRows, first_row: int
) -> None:
    """Multiply the first of ``rows`` out again, apart from the code that recovered them all. Raise
    ``CheckpointError`` if a block that is not told to be off the lattice does not give ``values`` back: a
    processor or a compiler that computes wrongly must not pass for a lattice."""
    products = rows.codes[:1].reshape(-1, BLOCK) * rows.scales[:1].reshape(-1, 1)
    same = bf16_floats(bf16_bits(products)) == as_floats(values).reshape(products.shape)
    if not np.all(same[rows.status[:1].reshape(-1) != OFF_LATTICE]):
        raise CheckpointError(
            f"{tensor.where}: the codes recovered for row {first_row} do not give its values back: recovery "
            "computes wrongly on this machine"
        )


def _check_finite(tensor: SourceTensor, values: NDArray[np.generic], first_row: int) -> None:
    """Raise ``CheckpointError`` for a value that is infinite or not a number."""
    if values.dtype == np.uint16:
        finite = (values.view(np.uint16) & 0x7F80) != 0x7F80
    else:
        finite = np.isfinite(values.astype(np.float32, copy=False))
    if not finite.all():
        row = first_row + int(np.argmin(finite.all(axis=1)))
        raise CheckpointError(f"{tensor.where} has a value that is infinite or not a number in row {row}")


def recovered(values: NDArray[np.generic]) -> LatticeRows:
    """Codes of rows as stored (uint16 for bfloat16 bits, float16 or float32).

    A block with a value that bfloat16 does not hold is off the lattice. Raises ``ValueError`` for a
    value that is infinite or not a number.
    """
    if values.dtype == np.uint16:
        return recover(values.view(np.uint16))
    floats = as_floats(values)
    if not np.isfinite(floats).all():
        raise ValueError("a value is not finite")
    bits = bf16_bits(floats)
    bits[(bits & 0x7F80) == 0x7F80] = 0  # above bfloat16's range; marked below as not held
    rows = recover(bits)
    rounded = (bf16_floats(bits) != floats).reshape(*rows.status.shape, BLOCK).any(axis=2)
    rows.status[rounded] = OFF_LATTICE
    return rows


form: Final = Form(
    name="bf16-lattice",
    describes="unquantized safetensors (BF16, F16 or F32)",
    example="google/gemma-4-E2B-it-qat-q4_0-unquantized",
    recognises=recognises,
    layout=layout,
    last_resort=True,
)
