"""A model of an artifact with its own graph and its own weights, whose codes have become float32.

XNNPACK rounds the input of a product with codes to int8, and that of a product with numbers not at all. So
this model shows what the graph computes. Sums of blocks with negative scales stay what they are: the graph
adds them. So do codes of tables in which rows are only looked up, as LiteRT multiplies them with their
scales in float32. What goes through int8, to static grids, stays float32: the operators that would round it
copy it.

A model that is too large for this can be cut to an excerpt (``targets.litert.excerpt``), which leaves holes
where the weights of other layers were.

The file may come from a stranger. The graph is not taken apart: its bytes are copied, and the few that say
type, place and length of codes are overwritten, each at a place that ``targets.litert.tables`` has checked.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from converter.checkpoint.excerpt import Excerpt
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.excerpt import cut
from targets.litert.reading import Codes, coded_products
from targets.litert.schema import BITS, GRAPH_BYTES, OPERATORS, TYPES, Buffer, Model, Subgraph, Tensor
from targets.litert.tables import Flatbuffer, Patch, Table
from targets.litert.type_names import FLOAT, FLOAT16, INT8
from targets.writing import RANGE, Output, destination_error

_FLOAT: Final = 4
_ALIGNMENT: Final = 64
#: Bytes that are copied at a time.
_CHUNK: Final = 16 << 20
#: Bytes from which on a weight that nothing reads is left out of an excerpt.
_LARGE: Final = 1 << 12
#: Types of weights whose products round nothing; what is computed has the first.
_NUMBERS: Final = (FLOAT, FLOAT16)
#: Operators that take numbers to int8 or back, and one that copies where both are float32 (``CAST``).
_ROUNDING: Final = ("QUANTIZE", "DEQUANTIZE")
_COPYING: Final = 53
#: Numbers of fields of ``Model``, ``SubGraph``, ``Operator`` and ``OperatorCode``.
_CODES, _SUBGRAPHS, _BUFFERS = 1, 2, 4
_TENSORS, _OPERATORS = 0, 3
_CODE: Final = 0
_SHORT, _LONG = 0, 3
#: ``TensorType`` of integers that are no weights: positions, shapes, flags.
_INDICES: Final = frozenset((2, 4, 6))


@dataclass(frozen=True, slots=True)
class _Wide:
    """A buffer of codes that becomes one of ``rows`` of numbers from byte ``offset`` of the new model on."""

    codes: Codes
    rows: int
    offset: int

    @property
    def size(self) -> int:
        return self.rows * self.codes.columns * _FLOAT


def widened_bytes(model: Model, excerpt: Excerpt | None = None) -> int:
    """Bytes that ``widen`` writes, without holes; raises ``CheckpointError`` as it does."""
    widening = _Widening(model, excerpt)
    kept = sum(stop - start for start, stop in widening.kept())
    return kept + sum(wide.size for wide in widening.buffers.values())


def widened_length(model: Model, excerpt: Excerpt | None = None) -> int:
    """Length of what ``widen`` writes, with holes; raises ``CheckpointError`` as it does."""
    return _Widening(model, excerpt).end


def coded_values(model: Model, excerpt: Excerpt | None = None) -> int:
    """Number of values that ``widen`` writes; raises ``CheckpointError`` as it does."""
    return sum(wide.size // _FLOAT for wide in _Widening(model, excerpt).buffers.values())


def widen(
    model: Model,
    output: BinaryIO,
    progress: Callable[[int], None] = lambda values: None,
    excerpt: Excerpt | None = None,
) -> None:
    """Write a model with float32 weights from where ``output``, a real file, stands, and stand behind it
    then; with ``excerpt``, its functions with these layers alone.

    ``progress`` is called with the number of values written. Raises ``CheckpointError`` for a model with
    weights of other types, that keeps codes where no place is told or that cannot be cut,
    ``DestinationError`` if the file cannot be written.
    """
    widening = _Widening(model, excerpt)
    base, path = output.tell(), Path(str(output.name))
    try:
        output.flush()
        os.ftruncate(output.fileno(), base + widening.end)
        sink = Output(path, output.fileno())
        for start, stop in widening.kept():
            for place in range(start, stop, _CHUNK):
                data = model.shard.read(model.start + place, min(_CHUNK, stop - place), "the graph")
                sink.put(np.frombuffer(data, np.uint8), base + place)
        for patch in widening.patches:
            sink.put(np.frombuffer(patch.content, np.uint8), base + patch.place)
        for wide in widening.buffers.values():
            width = wide.codes.columns
            step = max(1, RANGE // width)
            for start in range(0, wide.rows, step):
                values = wide.codes(start, min(start + step, wide.rows))
                sink.put(values.reshape(-1).view(np.uint8), base + wide.offset + start * width * _FLOAT)
                progress(values.size)
        output.seek(base + widening.end)
    except OSError as error:
        raise destination_error(path, error, base + widening.end) from error


class _Widening:
    """Which bytes of a model change; ``end`` is the size of the new one, ``buffers`` are those of codes that
    become numbers."""

    def __init__(self, model: Model, excerpt: Excerpt | None) -> None:
        data = model.shard.read(model.start, min(model.size, GRAPH_BYTES), "the graph")
        self._model = model
        self._flatbuffer = Flatbuffer(data, self._damaged, 1 << 20)
        self.patches: list[Patch] = []
        if excerpt is not None:
            self._model, self.patches = cut(model, self._flatbuffer, excerpt)
        self.buffers: dict[int, _Wide] = {}
        self.end = -(-model.size // _ALIGNMENT) * _ALIGNMENT
        self._others: set[int] = set()
        self._unread = set() if excerpt is None else _unread(self._model.subgraphs)
        root = self._flatbuffer.root()
        self._copy(root, model)
        multiplied = {buffer for one in self._model.subgraphs for buffer in _multiplied(one)}
        for subgraph, table in zip(self._model.subgraphs, root.tables(_SUBGRAPHS), strict=True):
            products = coded_products(self._model, subgraph)
            for tensor, entry in zip(subgraph.tensors, table.tables(_TENSORS), strict=True):
                if _is_rounded(tensor):
                    self._unscale(tensor, entry)
                elif TYPES.get(tensor.type) in BITS:
                    codes = products(tensor)
                    if tensor.buffer in multiplied:
                        self._add(tensor, entry, codes)
                else:
                    self._pass(tensor, entry)
        if mixed := self._others & self.buffers.keys():
            raise self._damaged(f"buffer {min(mixed)} holds codes and something else")
        for index, entry in enumerate(root.tables(_BUFFERS)):
            if index in self.buffers:
                self._move(index, entry)

    def _copy(self, root: Table, model: Model) -> None:
        """Have what rounds numbers to int8 copy them; what makes numbers of float16 stays."""
        rounding: dict[int, set[bool]] = {}
        for subgraph, table in zip(model.subgraphs, root.tables(_SUBGRAPHS), strict=True):
            entries = table.tables(_OPERATORS)
            for operator, entry in zip(subgraph.operators, entries, strict=True):
                if OPERATORS.get(operator.code) in _ROUNDING:
                    found = [
                        _is_rounded(subgraph.tensors[index])
                        for index in (*operator.inputs, *operator.outputs)
                        if 0 <= index < len(subgraph.tensors)
                    ]
                    rounding.setdefault(entry.number(_CODE, "<I"), set()).add(any(found))
        for index, code in enumerate(root.tables(_CODES)):
            if rounding.get(index) == {True, False}:
                raise self._damaged(f"operators of code {index} take int8 and float16")
            if rounding.get(index) == {True}:
                for field, format in ((_SHORT, "<b"), (_LONG, "<i")):
                    if (place := code.where(field)) is not None:
                        self.patches.append(Patch(place, struct.pack(format, _COPYING)))

    def _unscale(self, tensor: Tensor, entry: Table) -> None:
        """Make float32 of a tensor of int8 that has no data."""
        kind, quantization = entry.where(1), entry.table(4)
        if kind is None or quantization is None or tensor.rowwise is None:
            raise self._damaged(f"tensor {shown(tensor.name)} is scaled in a way that is not read")
        place, _ = quantization.vector(2, _FLOAT)
        self.patches += [Patch(kind, b"\0"), Patch(place - 4, b"\0\0\0\0")]

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._model.shard.path}: cannot be widened to float32: {problem}")

    def kept(self) -> Iterator[tuple[int, int]]:
        """The stretches of the model that are copied, from one byte to another, without codes that become
        numbers and what no operator of an excerpt reads. What is left out stays a hole."""
        left = {wide.codes.codes.buffer for wide in self.buffers.values()} | self._unread
        start = 0
        for buffer in sorted(left, key=lambda one: one.offset):
            if buffer.offset > start:
                yield start, buffer.offset
            start = max(start, buffer.offset + buffer.size)
        if start < self._model.size:
            yield start, self._model.size

    def _pass(self, tensor: Tensor, entry: Table) -> None:
        known = tensor.type in _INDICES or TYPES.get(tensor.type) in (_NUMBERS if tensor.buffer else (FLOAT,))
        if tensor.buffer is not None:
            self._others.add(entry.number(2, "<I"))
        if not known or tensor.scaled:
            raise self._damaged(f"tensor {shown(tensor.name)} has type {tensor.type}, which is not read")

    def _add(self, tensor: Tensor, entry: Table, codes: Codes) -> None:
        index, quantization, kind = entry.number(2, "<I"), entry.table(4), entry.where(1)
        assert quantization is not None
        assert kind is not None  # the number there is not 0
        self.patches.append(Patch(kind, b"\0"))
        if tensor.rowwise is not None:  # a list of scales without any says that there are none
            place, _ = quantization.vector(2, _FLOAT)
            self.patches.append(Patch(place - 4, b"\0\0\0\0"))
        else:
            details = quantization.where(4)
            assert details is not None
            self.patches.append(Patch(details, b"\0"))
        wide = _Wide(codes, tensor.shape[0], self.end)
        known = self.buffers.setdefault(index, wide)
        if known is wide:
            self.end += -(-wide.size // _ALIGNMENT) * _ALIGNMENT
        elif (known.codes.scales.buffer, known.rows) != (codes.scales.buffer, wide.rows):
            raise self._damaged(f"tensor {shown(tensor.name)} shares codes with other scales")

    def _move(self, index: int, entry: Table) -> None:
        wide = self.buffers[index]
        offset, size = entry.where(1), entry.where(2)
        if offset is None or size is None or entry.number(1, "<Q") <= 1:
            raise self._damaged(f"its codes lie within the graph ({shown(wide.codes.codes.name)})")
        self.patches.append(Patch(offset, struct.pack("<Q", wide.offset)))
        self.patches.append(Patch(size, struct.pack("<Q", wide.size)))


def _is_rounded(tensor: Tensor) -> bool:
    """Whether a tensor holds what was rounded to int8 on the way."""
    return tensor.buffer is None and TYPES.get(tensor.type) == INT8


def _multiplied(subgraph: Subgraph) -> Iterator[Buffer]:
    """Where codes lie that something else than a look-up reads."""
    for operator in subgraph.operators:
        if OPERATORS.get(operator.code) == "EMBEDDING_LOOKUP":
            continue
        for index in operator.inputs:
            if 0 <= index < len(subgraph.tensors) and (buffer := subgraph.tensors[index].buffer):
                yield buffer


def _unread(subgraphs: Sequence[Subgraph]) -> set[Buffer]:
    """Where large weights lie that nothing reads, and nothing that is read lies with them."""
    read: set[Buffer] = set()
    for subgraph in subgraphs:
        indices = {index for one in subgraph.operators for index in (*one.inputs, *one.outputs)}
        for index in indices.intersection(range(len(subgraph.tensors))):
            read.update(_held(subgraph, subgraph.tensors[index]))
    places = sorted((one.offset, one.offset + one.size) for one in read)
    starts = [start for start, _ in places]
    ends = [0, *accumulate((end for _, end in places), max)]
    every = {one.buffer for subgraph in subgraphs for one in subgraph.tensors}

    def apart(one: Buffer) -> bool:
        return ends[bisect_left(starts, one.offset + one.size)] <= one.offset

    return {one for one in every if one is not None and one.size >= _LARGE and apart(one)}


def _held(subgraph: Subgraph, tensor: Tensor) -> Iterator[Buffer]:
    """Where a tensor and its scales lie."""
    scheme = tensor.blockwise
    scales = () if scheme is None else subgraph.tensors[scheme.scales : scheme.scales + 1]
    for one in (tensor, *scales):
        if one.buffer is not None:
            yield one.buffer
