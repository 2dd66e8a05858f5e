"""Weights put into a TFLite graph that was exported without them, streamed by row ranges.

The graph has every weight as an argument of its functions, by canonical name. Here the argument becomes a
constant, whose bytes lie behind the flatbuffer, where ``Buffer.offset`` and ``Buffer.size`` lead
(TensorFlow Lite's ``schema.fbs``): a flatbuffer itself holds no more than 2 GB. All functions share the bytes
of a weight.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

import numpy as np

from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.weight import Weight
from converter.errors import TargetError
from targets.litert.activations import Grid
from targets.litert.encoding import encode, row_scales, side_by_side
from targets.litert.flatbuffer import Graph
from targets.litert.storage import LITERT, ROWS
from targets.writing import RANGE, Encoded, Output, Piece, destination_error, write_pieces

#: Places of buffers, and of the first one, are multiples of these.
_ALIGNMENT: Final = 64
_PAGE: Final = 4096
#: Length of a weight's dimensions along which its rows do not run: experts, or none.
_EXPERTS: Final = 3


@dataclass(frozen=True, slots=True)
class Filled:
    """What the writer saw."""

    #: Bytes of the model.
    size: int
    #: Names of the graph's weights.
    names: tuple[str, ...]
    #: Blocks written as codes of a lattice.
    blocks: int
    #: How many of them lie on no lattice, by weight.
    off_lattice: Mapping[str, int]
    #: How many values lie in those, by weight.
    off_values: Mapping[str, int]
    #: How many blocks have a scale that float16 does not hold and that has been rounded.
    rounded: int
    #: How many blocks have a scale that is right in the file but that XNNPACK rounds to bfloat16, by weight.
    narrowed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies in the file."""

    name: str
    weight: Weight
    type: str
    #: Where its codes or numbers, its scales and its sums begin; scales of rows stand in the flatbuffer.
    offsets: tuple[int, ...]
    #: Of a row of each.
    bytes: tuple[int, int, int]
    positive: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A model before its weights are written."""

    #: Its flatbuffer.
    head: bytes
    #: Where every weight of the graph goes behind it.
    places: tuple[Place, ...]
    #: The bytes of all.
    end: int
    #: The weights' names.
    names: tuple[str, ...]


def fill(
    graph: bytes,
    weights: Mapping[str, Weight],
    types: Mapping[str, str],
    output: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
    threads: int | None = None,
    *,
    two_rows: Collection[str] = (),
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> Filled:
    """Write a TFLite model from where ``output``, a real file, stands; it stands behind the model then.

    ``graph`` is a flatbuffer whose functions take weights as float32 arguments named as in ``weights``, which
    is by canonical name, or ``lm_head.weight`` for a head tied to the embedding. ``types`` say for each of
    them how it is held (``targets.litert.storage``); ``INT4+sums`` adds a product with a
    constant ``<name>|sums``, float32 ``[rows, blocks]``. A weight of several experts, ``[experts, rows,
    columns]``, may be an argument ``[experts * rows, columns]`` or ``[rows, experts * columns]``.
    Products with a weight named in ``two_rows`` split their input by magnitude, those with one in ``grids``
    round input and output to static grids. ``progress`` is called with the bytes of checkpoint read, by one
    thread at a time.

    Raises ``TargetError`` for a graph that does not fit the weights and for values that the type or the
    runtime cannot hold. Raises ``DestinationError`` if the file cannot be written, and ``CheckpointError``
    for a weight that cannot be read. Needs the packages of the extra ``litert``.
    """
    layout = lay_out(graph, weights, types, two_rows, grids)
    head, end, base = layout.head, layout.end, output.tell()
    finished = [replace(place, offsets=tuple(base + one for one in place.offsets)) for place in layout.places]
    path = Path(str(output.name))
    try:
        output.flush()
        if os.fstat(output.fileno()).st_size < base + end:
            os.ftruncate(output.fileno(), base + end)
        sink = Output(path, output.fileno())
        sink.put(np.frombuffer(head, np.uint8), base)
        narrowing = _Narrowing()
        pieces = _pieces(finished, narrowing)
        written = write_pieces([sink], pieces, progress, threads)
        output.seek(base + end)
    except OSError as error:
        raise destination_error(path, error, base + end) from error
    return Filled(
        end,
        layout.names,
        written.blocks,
        written.off_lattice,
        written.off_values,
        written.rounded,
        narrowing.counts(),
    )


def lay_out(
    graph: bytes,
    weights: Mapping[str, Weight],
    types: Mapping[str, str],
    two_rows: Collection[str] = (),
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> Layout:
    """Where ``fill`` puts everything, without reading a matrix; arguments and errors are those of
    ``fill``."""
    filling = Graph(graph, lambda name: _resolved(name, weights) is not None, types)
    rows = {*two_rows, EMBEDDING} if HEAD in two_rows else set(two_rows)  # of a tied head
    of_head = {EMBEDDING: grids[HEAD]} if HEAD in grids else {}  # of a tied one
    own = {**of_head, **grids}
    places = [_chosen(filling, name, weights, types, name in rows, own.get(name)) for name in filling.names]
    sizes = [place.weight.rows * size for place in places for size in place.bytes if size]
    head, offsets = filling.finished(sizes, _offsets)
    end = max([len(head), *(offset + size for offset, size in zip(offsets, sizes, strict=True))])
    rest = iter(offsets)
    return Layout(head, tuple(_placed(place, rest) for place in places), end, filling.names)


def _chosen(
    filling: Graph,
    name: str,
    weights: Mapping[str, Weight],
    types: Mapping[str, str],
    two_rows: bool,
    grid: Grid | None,
) -> Place:
    """A weight of the graph made a constant; its offsets are not known yet."""
    weight = _resolved(name, weights)
    assert weight is not None
    type_name = types.get(name)
    if type_name is None:
        raise TargetError(f"litert: {name}: the graph has this weight, the plan has not")
    scales = None
    if type_name in ROWS:
        scales = row_scales(weight, type_name, multiplied=filling.is_multiplied(name))
    use = filling.use(name, type_name, two_rows, scales, grid)
    weight = _shaped(weight, use.shape, name)
    codes, beside, sums = LITERT.row_parts(type_name, weight.columns)
    parts = (codes, 0 if type_name in ROWS else beside, sums)
    return Place(name, weight, type_name, (0, 0, 0), parts, use.multiplied)


def _resolved(name: str, weights: Mapping[str, Weight]) -> Weight | None:
    """The weight that an argument of the graph stands for."""
    return weights.get(EMBEDDING) if name == HEAD and name not in weights else weights.get(name)


def _offsets(head: int, sizes: list[int]) -> list[int]:
    """Where buffers of the given sizes begin behind a flatbuffer of ``head`` bytes."""
    end, offsets = -(-head // _PAGE) * _PAGE, []
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets


def _placed(place: Place, offsets: Iterator[int]) -> Place:
    return replace(place, offsets=tuple(next(offsets) if size else 0 for size in place.bytes))


def _shaped(weight: Weight, shape: tuple[int, ...], name: str) -> Weight:
    """A weight as rows of the graph's ``shape``: its own, or those of all experts side by side."""
    if shape in (weight.shape, (weight.rows, weight.columns)) or (not weight.shape and shape == (1,)):
        return weight
    if len(weight.shape) == _EXPERTS and shape == (weight.shape[1], weight.shape[0] * weight.columns):
        return side_by_side(weight)
    raise TargetError(
        f"litert: {name}: the graph takes it as {list(shape)}, the checkpoint has {list(weight.shape)}"
    )


class _Narrowing:
    """Counts, from several threads, blocks whose scale float16 holds and bfloat16 does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, name: str, count: int) -> None:
        if count:
            with self._lock:
                self._counts[name] = self._counts.get(name, 0) + count

    def counts(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))


def _pieces(places: Iterable[Place], narrowing: _Narrowing) -> Iterator[Piece]:
    for place in places:
        for start, stop in place.weight.row_ranges(RANGE):
            yield Piece(place.weight, start, stop, 0, partial(_encoded, place, narrowing, start, stop))


def _encoded(place: Place, narrowing: _Narrowing, start: int, stop: int) -> Encoded:
    rows = encode(place.weight, place.type, start, stop, multiplied=place.positive)
    if place.positive:
        narrowing.add(place.weight.name, rows.narrowed)
    at = [offset + start * size for offset, size in zip(place.offsets, place.bytes, strict=True)]
    return Encoded(tuple(zip(at, rows.stretches(), strict=False)), rows.statuses)
