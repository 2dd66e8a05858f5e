"""``model.onnx.data``, written by row ranges: codes and scales, and what is kept as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from converter.checkpoint.weight import Weight
from targets.onnx.layout import Layout, Place
from targets.onnx.packing import FROM_FLOATS, pack_codes, pack_scales
from targets.onnx.storage import Storage
from targets.writing import NO_BLOCKS, RANGE, Bytes, Encoded, Piece, Statuses, Written, reserved, write_pieces


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
        storage.held.check_numbers(weight, type_name, values)
        return Encoded(((offset, FROM_FLOATS[type_name](values)),), NO_BLOCKS)
    codes, scales, statuses = quantised(weight, type_name, storage, start, stop)
    scales_offset = place.scales_offset + start * place.scales_row_bytes
    return Encoded(((offset, codes), (scales_offset, scales)), statuses)


def quantised(
    weight: Weight, type_name: str, storage: Storage, start: int, stop: int
) -> tuple[Bytes, Bytes, Statuses]:
    """Bytes of codes and of scales, and the status of every lattice block."""
    held = storage.held
    coded = held.find(type_name)
    assert coded is not None
    rows, statuses = held.coded_rows(weight, coded, start, stop)
    return pack_codes(rows.codes, coded.bits), pack_scales(rows.scales, storage.scales), statuses
