"""GGUF's tensor data, written by row ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from converter.checkpoint.weight import Weight
from targets.gguf.header import Layout, Place
from targets.gguf.packing import FROM_CODES, FROM_FLOATS
from targets.gguf.storage import GGML
from targets.writing import NO_BLOCKS, RANGE, Bytes, Encoded, Piece, Statuses, Written, reserved, write_pieces


def write_data(
    layout: Layout,
    weights: Mapping[str, Weight],
    made: Mapping[str, Bytes],
    offset_of: Callable[[str], float],
    progress: Callable[[int], None],
    threads: int | None = None,
) -> Written:
    """Write the data of every tensor of ``layout`` into its file.

    ``weights`` maps canonical names to weights, ``made`` the stored names of tensors that come from no
    weight to their bytes. ``offset_of(name)`` is added to the numbers of a weight. ``progress`` is called
    with the bytes of checkpoint read, by one thread at a time. Raises ``DestinationError`` if a file cannot
    take its size.
    """
    with reserved(layout.files, layout.sizes) as outputs:
        for place in layout.places:
            if place.tensor.weight is None:
                outputs[place.file].put(made[place.tensor.stored_as], place.offset)
        return write_pieces(outputs, _pieces(layout.places, weights, offset_of), progress, threads)


def _pieces(
    places: tuple[Place, ...], weights: Mapping[str, Weight], offset_of: Callable[[str], float]
) -> Iterator[Piece]:
    for place in places:
        if place.tensor.weight is not None:
            weight = weights[place.tensor.weight]
            add = offset_of(weight.name)
            for start, stop in weight.row_ranges(RANGE):
                yield Piece(
                    weight, start, stop, place.file, partial(_encoded, weight, place, start, stop, add)
                )


def _encoded(weight: Weight, place: Place, start: int, stop: int, add: float) -> Encoded:
    data, statuses = encode(weight, place.tensor.type, start, stop, add)
    offset = place.offset + start * GGML.row_bytes(place.tensor.type, weight.columns)
    return Encoded(((offset, data),), statuses)


def encode(weight: Weight, type_name: str, start: int, stop: int, add: float) -> tuple[Bytes, Statuses]:
    """Rows of a weight as bytes of a GGML type, and the status of every lattice block packed. ``add`` is
    added to numbers, as the model does before it multiplies with a norm. Raises ``TargetError`` for values
    that the type would turn into infinities."""
    if coded := GGML.find(type_name):
        rows, statuses = GGML.coded_rows(weight, coded, start, stop)
        return FROM_CODES[type_name](rows), statuses
    values = weight.floats(start, stop)
    if add:
        values = values + np.float32(add)
    GGML.check_numbers(weight, type_name, values)
    return FROM_FLOATS[type_name](values), NO_BLOCKS
