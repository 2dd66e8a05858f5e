"""A model of an artifact with its own graph and its own weights, whose codes have become float32.

XNNPACK rounds the input of a product with codes to int8, and that of a product with numbers not at all. So
this model shows what the graph computes. Sums of blocks with negative scales stay what they are: the graph
adds them.

The file may come from a stranger. The graph is not taken apart: its bytes are copied, and the few that say
type, place and length of codes are overwritten, each at a place that ``targets.litert.tables`` has checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from converter.document import shown
from converter.errors import CheckpointError
from targets.litert.reading import Codes, coded_products
from targets.litert.schema import GRAPH_BYTES, TYPES, Model, Tensor
from targets.litert.tables import Flatbuffer, Table
from targets.writing import RANGE, Output, destination_error

_FLOAT: Final = 4
_ALIGNMENT: Final = 64
#: Bytes that are copied at a time.
_CHUNK: Final = 16 << 20
#: Types of weights whose products round nothing; what is computed has the first.
_NUMBERS: Final = ("FLOAT", "FLOAT16")
#: ``TensorType`` of integers that are no weights: positions, shapes, flags.
_INDICES: Final = frozenset((2, 4, 6))


@dataclass(frozen=True, slots=True)
class _Patch:
    """Bytes that are overwritten in a copy of the graph."""

    place: int
    content: bytes


@dataclass(frozen=True, slots=True)
class _Wide:
    """A buffer of codes that becomes one of ``rows`` of numbers from byte ``offset`` of the new model on."""

    codes: Codes
    rows: int
    offset: int

    @property
    def size(self) -> int:
        return self.rows * self.codes.columns * _FLOAT


def widened_bytes(model: Model) -> int:
    """Bytes of the file that ``widen`` writes; raises ``CheckpointError`` as it does."""
    return _Widening(model).end


def coded_values(model: Model) -> int:
    """Number of values that ``widen`` writes; raises ``CheckpointError`` as it does."""
    return sum(wide.size // _FLOAT for wide in _Widening(model).buffers.values())


def widen(model: Model, output: BinaryIO, progress: Callable[[int], None] = lambda values: None) -> None:
    """Write a model with float32 weights from where ``output``, a real file, stands, and stand behind it
    then.

    ``progress`` is called with the number of values written. Raises ``CheckpointError`` for a model with
    weights of other types or that keeps codes where no place is told, ``DestinationError`` if the file cannot
    be written.
    """
    widening = _Widening(model)
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
    """Which bytes of a model change; ``end`` is the size of the new one, ``buffers`` are those of codes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        data = model.shard.read(model.start, min(model.size, GRAPH_BYTES), "the graph")
        self._flatbuffer = Flatbuffer(data, self._damaged, 1 << 20)
        self.patches: list[_Patch] = []
        self.buffers: dict[int, _Wide] = {}
        self.end = -(-model.size // _ALIGNMENT) * _ALIGNMENT
        self._others: set[int] = set()
        root = self._flatbuffer.root()
        for subgraph, table in zip(model.subgraphs, root.tables(2), strict=True):
            products = coded_products(model, subgraph)
            for tensor, entry in zip(subgraph.tensors, table.tables(0), strict=True):
                if TYPES.get(tensor.type) == "INT4":
                    self._add(tensor, entry, products(tensor))
                else:
                    self._pass(tensor, entry)
        if mixed := self._others & self.buffers.keys():
            raise self._damaged(f"buffer {min(mixed)} holds codes and something else")
        for index, entry in enumerate(root.tables(4)):
            if index in self.buffers:
                self._move(index, entry)

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._model.shard.path}: cannot be widened to float32: {problem}")

    def kept(self) -> Iterator[tuple[int, int]]:
        """The stretches of the model without codes, from one byte to another; what is left out stays a
        hole."""
        start = 0
        for buffer in sorted(
            (wide.codes.codes.buffer for wide in self.buffers.values()), key=lambda one: one.offset
        ):
            if buffer.offset > start:
                yield start, buffer.offset
            start = max(start, buffer.offset + buffer.size)
        if start < self._model.size:
            yield start, self._model.size

    def _pass(self, tensor: Tensor, entry: Table) -> None:
        known = tensor.type in _INDICES or TYPES.get(tensor.type) in (
            _NUMBERS if tensor.buffer else ("FLOAT",)
        )
        if tensor.buffer is not None:
            self._others.add(entry.number(2, "<I"))
        if not known or tensor.scaled:
            raise self._damaged(f"tensor {shown(tensor.name)} has type {tensor.type}, which is not read")

    def _add(self, tensor: Tensor, entry: Table, codes: Codes) -> None:
        index, quantization = entry.number(2, "<I"), entry.table(4)
        if quantization is None or tensor.scaled:
            raise self._damaged(f"tensor {shown(tensor.name)} has scales of another kind")
        for place in (entry.where(1), quantization.where(4)):
            assert place is not None  # the numbers there are not 0
            self.patches.append(_Patch(place, b"\0"))
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
        self.patches.append(_Patch(offset, struct.pack("<Q", wide.offset)))
        self.patches.append(_Patch(size, struct.pack("<Q", wide.size)))
