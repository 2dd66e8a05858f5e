"""``model.onnx.data``, written by row ranges: codes and scales, and what is kept as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.weight import EXACT, OFF_LATTICE, LatticeRows, Weight
from converter.errors import TargetError
from targets import float16
from targets.onnx.layout import Layout, Place
from targets.onnx.packing import FROM_FLOATS, pack_codes, pack_scales
from targets.onnx.storage import BITS, Storage
from targets.writing import NO_BLOCKS, RANGE, Bytes, Encoded, Piece, Statuses, Written, reserved, write_pieces

_LARGEST_BFLOAT16: Final = float((2 - 2.0**-7) * 2.0**127)
#: The largest magnitudes of values that a type keeps without infinities.
_LARGEST: Final[Mapping[str, float]] = {
    "FLOAT16": float16.LARGEST,
    "BFLOAT16": _LARGEST_BFLOAT16,
}


def write_data(
    path: Path,
    layout: Layout,
    weights: Mapping[str, Weight],
    storage: Storage,
    progress: Callable[[int], None],
    threads: int | None = None,
) -> Written:
    """Write every weight of ``layout`` to its place in the file ``path``, made if absent.

    ``weights`` is by canonical name. ``progress`` is called with the bytes of checkpoint read, by one
    thread at a time. Blocks count as rounded if their scale needs float32 and ``storage`` keeps float16.
    Raises ``DestinationError`` if the file cannot take its size, ``TargetError`` for values that the type
    would turn into infinities, ``CheckpointError`` for a weight that cannot be read.
    """
    with reserved([path], [layout.size]) as outputs:
        return write_pieces(outputs, _pieces(layout, weights, storage), progress, threads)


def _pieces(layout: Layout, weights: Mapping[str, Weight], storage: Storage) -> Iterator[Piece]:
    for name, place in layout.places.items():
        weight = weights[name]
        for start, stop in weight.row_ranges(RANGE):
            yield Piece(weight, start, stop, 0, partial(encoded, weight, place, storage, start, stop))


def encoded(weight: Weight, place: Place, storage: Storage, start: int, stop: int) -> Encoded:
    """Rows of a weight as the data file holds them at its place: codes and scales, or numbers. Raises
    ``TargetError`` for values that the type would turn into infinities."""
    type_name = place.tensor.type
    offset = place.offset + start * place.row_bytes
    if place.scales_offset is None:
        values = weight.floats(start, stop)
        _check_range(weight, type_name, values, _LARGEST.get(type_name))
        return Encoded(((offset, FROM_FLOATS[type_name](values)),), NO_BLOCKS)
    codes, scales, statuses = quantised(weight, type_name, storage, start, stop)
    scales_offset = place.scales_offset + start * place.scales_row_bytes
    return Encoded(((offset, codes), (scales_offset, scales)), statuses)


def quantised(
    weight: Weight, type_name: str, storage: Storage, start: int, stop: int
) -> tuple[Bytes, Bytes, Statuses]:
    """Bytes of codes and of scales, and the status of every lattice block."""
    rows = storage.held.codes(weight, type_name, start, stop)
    if rows is not None:
        if storage.scales == "FLOAT16":
            _check_range(weight, type_name, rows.scales, float16.LARGEST)
        packed = pack_codes(rows.codes, BITS[type_name])
        return packed, pack_scales(rows.scales, storage.scales), _statuses(rows, storage)
    values = weight.floats(start, stop)
    coded = storage.held.find(type_name)
    assert coded is not None
    _check_range(weight, type_name, values, coded.largest)
    rows = coded.rounded(values)
    return pack_codes(rows.codes, BITS[type_name]), pack_scales(rows.scales, storage.scales), NO_BLOCKS


def _statuses(rows: LatticeRows, storage: Storage) -> Statuses:
    """Float32 holds every scale: nothing is rounded that is on the lattice."""
    status = rows.status.reshape(-1)
    if storage.scales == "FLOAT16":
        return status
    held: Statuses = np.where(status == OFF_LATTICE, status, np.uint8(EXACT))
    return held


def _check_range(weight: Weight, type_name: str, values: NDArray[np.float32], limit: float | None) -> None:
    if limit is None or not float16.out_of_range(values, limit):
        return
    if weight.lattice and type_name in BITS:
        remedy = "use --onnx-scales f32 and --onnx-dtype float32"
    elif len(weight.shape) < 2:
        remedy = "use --onnx-dtype float32"
    else:
        remedy = f"try --off-lattice {'f32' if type_name == 'BFLOAT16' else 'bf16'}"
    held = f"the float16 scales of {type_name}" if type_name in BITS else type_name
    raise TargetError(f"onnx: {weight.name}: a value is beyond the range of {held}; {remedy}")
