"""What a TFLite flatbuffer says about its weights: tensors, buffers and operators, without their data.

The file may come from a stranger: ``targets.litert.tables`` checks every place in it. Numbers of fields are
those of TensorFlow Lite's ``schema.fbs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from converter.checkpoint.safetensors import Shard
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.tables import Flatbuffer, Table
from targets.litert.type_names import FLOAT, FLOAT16, INT2, INT4, INT8

#: Most bytes of a file among which its graph may lie; one of 60 layers has 10 MB. Weights come behind.
GRAPH_BYTES: Final = 64 << 20
#: Most tensors, buffers, operators and numbers in their lists.
_MOST_PARTS: Final = 1 << 20
_MOST_DIMENSIONS: Final = 8
#: ``TensorType`` of the types in which weights are stored.
TYPES: Final[Mapping[int, str]] = {0: FLOAT, 1: FLOAT16, 9: INT8, 17: INT4, 19: INT2}
#: Bits of a code, by the type.
BITS: Final[Mapping[str, int]] = {INT2: 2, INT4: 4, INT8: 8}
#: ``BuiltinOperator`` of the operators that read weights in ways of their own.
OPERATORS: Final[Mapping[int, str]] = {
    6: "DEQUANTIZE",
    7: "EMBEDDING_LOOKUP",
    9: "FULLY_CONNECTED",
    114: "QUANTIZE",
    206: "STABLEHLO_COMPOSITE",
}

_BLOCKWISE: Final = 2


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes of a tensor: ``size`` from ``offset`` on, counted from the flatbuffer's beginning."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Blockwise:
    """How codes are scaled."""

    #: The tensor with the scales.
    scales: int
    #: The tensor with zero points; -1 for none.
    zero_points: int
    #: Values per scale.
    block: int
    #: The dimension that is not cut into blocks.
    dimension: int


@dataclass(frozen=True, slots=True)
class Rowwise:
    """Scales of codes that stand in the graph."""

    #: float32 numbers.
    scales: Buffer
    #: int64 numbers; ``None`` for none.
    zero_points: Buffer | None
    #: The dimension along which there is one for each item.
    dimension: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a subgraph."""

    name: str
    #: ``TensorType``'s number.
    type: int
    shape: tuple[int, ...]
    #: ``None`` without data.
    buffer: Buffer | None
    blockwise: Blockwise | None
    rowwise: Rowwise | None
    #: Whether it is scaled in another way than by blocks.
    scaled: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator."""

    #: ``BuiltinOperator``'s number.
    code: int
    #: The tensors that it reads; -1 for one left out.
    inputs: tuple[int, ...]
    #: The tensors that it makes.
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One function of a model."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A TFLite model in a file."""

    shard: Shard
    #: The file's byte at which it begins.
    start: int
    #: How many bytes it has.
    size: int
    subgraphs: tuple[Subgraph, ...]


def read_model(shard: Shard, start: int = 0, size: int | None = None) -> Model:
    """Read the graph of the model in ``size`` bytes of a file, all behind ``start`` by default; raises
    ``CheckpointError``."""
    size = shard.size - start if size is None else size
    if not 0 <= start <= start + size <= shard.size:
        raise CheckpointError(f"{shard.path}: cut off: a model ends at byte {start + size} of {shard.size}")
    data = shard.read(start, min(size, GRAPH_BYTES), "the graph")
    if data[4:8] != b"TFL3":
        raise CheckpointError(f"{shard.path}: not a TFLite model")
    return _Reader(shard, start, size, data).model()


class _Reader:
    """The graph of a model in ``size`` bytes from ``start`` on."""

    def __init__(self, shard: Shard, start: int, size: int, data: bytes) -> None:
        self._shard, self._start, self._size = shard, start, size
        self._flatbuffer = Flatbuffer(data, self._damaged, _MOST_PARTS)

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._shard.path}: not a whole TFLite model: {problem}")

    def model(self) -> Model:
        root = self._flatbuffer.root()
        codes = [self._code(one) for one in root.tables(1)]
        buffers = [self._buffer(one) for one in root.tables(4)]
        subgraphs = []
        for one in root.tables(2):
            tensors = tuple(self._tensor(tensor, buffers) for tensor in one.tables(0))
            operators = tuple(self._operator(operator, codes) for operator in one.tables(3))
            subgraphs.append(Subgraph(tensors, operators))
        return Model(self._shard, self._start, self._size, tuple(subgraphs))

    def _code(self, table: Table) -> int:
        # codes above 127 are in a field of their own, which older files lack
        return max(table.number(0, "<b"), table.number(3, "<i"))

    def _buffer(self, table: Table) -> Buffer | None:
        offset, size = table.number(1, "<Q"), table.number(2, "<Q")
        if offset > 1:  # 0 and 1 stand for data within the flatbuffer
            if offset + size > self._size:
                end = shown(offset + size)
                raise CheckpointError(
                    f"{self._shard.path}: cut off: a buffer ends at byte {end} of {self._size}"
                )
            return Buffer(offset, size)
        place, count = table.vector(0, 1)
        return Buffer(place, count) if count else None

    def _tensor(self, table: Table, buffers: list[Buffer | None]) -> Tensor:
        name, index, shape = table.text(3), table.number(2, "<I"), table.integers(0)
        if index >= len(buffers):
            raise self._damaged(f"tensor {shown(name)} has buffer {index} of {len(buffers)}")
        if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
            raise self._damaged(f"tensor {shown(name)} has shape {shown(shape)}")
        quantization = table.table(4)
        blockwise, rowwise, scaled = None, None, False
        if quantization is not None:
            (place, count), (first, length) = quantization.vector(2, 4), quantization.vector(3, 8)
            scaled = count > 0 or quantization.number(4, "<B") not in (0, _BLOCKWISE)
            if count and not quantization.number(4, "<B"):
                zero_points = Buffer(first, length * 8) if length else None
                rowwise = Rowwise(Buffer(place, count * 4), zero_points, quantization.number(6, "<i"))
            details = quantization.table(5)
            if details is not None and quantization.number(4, "<B") == _BLOCKWISE:
                scales, zeros, block = (details.number(field, "<i") for field in range(3))
                blockwise = Blockwise(scales, zeros, block, quantization.number(6, "<i"))
        return Tensor(name, table.number(1, "<b"), shape, buffers[index], blockwise, rowwise, scaled)

    def _operator(self, table: Table, codes: list[int]) -> Operator:
        index = table.number(0, "<I")
        if index >= len(codes):
            raise self._damaged(f"an operator has code {index} of {len(codes)}")
        return Operator(codes[index], table.integers(1), table.integers(2))
