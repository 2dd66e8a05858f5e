"""LiteRT artifacts read back: every weight is found by its name in the graph, and read as the runtime does.

Independent of how they were written: the flatbuffer alone says where the bytes are and what they mean. Norms
and other vectors are constants without a name of their own. For them the graph must hold a constant with the
checkpoint's numbers. That does not say that it is in its place, which only running the graph shows. A factor
of 1 may be absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.safetensors import Shard
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.litert.bundle import read_sections
from targets.litert.encoding import dequantised, encode
from targets.litert.schema import (
    BITS,
    GRAPH_BYTES,
    OPERATORS,
    TYPES,
    Buffer,
    Model,
    Rowwise,
    Subgraph,
    Tensor,
    read_model,
)
from targets.litert.sections import MODEL
from targets.litert.storage import CODED, LITERT, sums_name
from targets.litert.type_names import (
    FLOAT,
    FLOAT16,
    INT2,
    INT2_ROWS,
    INT4,
    INT4_ROWS,
    INT4_SUMS,
    INT8,
    INT8_ROWS,
)
from targets.target import StoredTensor

Floats = NDArray[np.float32]

#: How operators read a weight: the operator and the place of its input.
_MULTIPLIED: Final = ("FULLY_CONNECTED", 1)
_CODED_USES: Final = frozenset((_MULTIPLIED, ("EMBEDDING_LOOKUP", 1)))
_DEQUANTIZED: Final = frozenset((("DEQUANTIZE", 0),))
_WIDTHS: Final = {FLOAT: 4, FLOAT16: 2}
#: Types with one scale for each row, by that of the codes.
_PER_ROW: Final = {INT2: INT2_ROWS, INT4: INT4_ROWS, INT8: INT8_ROWS}
#: Most functions with one weight.
_MOST_PLACES: Final = 64
#: Largest constant among which nameless vectors are sought, in bytes.
_VECTOR_BYTES: Final = 4 << 20
#: The type of a factor of 1, which changes nothing, so that the converter leaves the product out.
LEFT_OUT: Final = "factor 1, left out"


def describe(artifact: Path, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every weight of ``checkpoint`` as stored in ``artifact`` (``.tflite`` or ``.litertlm``).

    A head that is tied to the embedding but has a tensor of its own counts with the embedding's bytes. Raises
    ``CheckpointError`` for a damaged file and for a weight that is missing, has another shape, is held in two
    ways or is used in a way that is not read.
    """
    return describe_models(open_models(artifact), checkpoint.weights, checkpoint.architecture.offset_of)


def open_models(artifact: Path) -> list[Model]:
    """The models in a file: one in a ``.tflite``, several in a ``.litertlm``; raises ``CheckpointError``."""
    if artifact.suffix != ".litertlm":
        return [read_model(Shard(artifact))]
    sections = [one for one in read_sections(artifact) if one.kind == MODEL]
    if not sections:
        raise CheckpointError(f"{artifact}: holds no TFLite model")
    shard = Shard(artifact)
    return [read_model(shard, one.offset, one.size) for one in sections]


def describe_models(
    models: Sequence[Model],
    weights: Mapping[str, Weight],
    offset_of: Callable[[str], float] = lambda name: 0.0,
) -> dict[str, StoredTensor]:
    """See ``describe``; graphs have ``offset_of(name)`` added to the vector ``name``."""
    found = _Tensors(models, offset_of)
    stored = {}
    for key, weight in weights.items():
        matrix = found.matrix(key, weight)
        rule = _rule(matrix, weight)
        bytes_, type_name = matrix.bytes, matrix.type
        if key == EMBEDDING and HEAD not in weights and HEAD in found.names:
            head = found.matrix(HEAD, weight)
            matrix = _agreeing(matrix, head, found.path)
            bytes_, type_name = bytes_ + head.bytes, " and ".join(dict.fromkeys((type_name, head.type)))
        stored[key] = StoredTensor(key, key, type_name, weight.shape, bytes_, matrix.rows, rule)
    return stored


def coded_products(model: Model, subgraph: Subgraph) -> Callable[[Tensor], Codes]:
    """A function that gives codes times scales, without sums, of a tensor of codes in one function of a
    model. It raises ``CheckpointError`` for codes that are used or scaled in a way that is not read."""
    found = _Tensors([replace(model, subgraphs=(subgraph,))], lambda name: 0.0)
    uses = _uses(subgraph)
    indices = {id(tensor): index for index, tensor in enumerate(subgraph.tensors)}
    return lambda tensor: found.products(model, subgraph, tensor, uses.get(indices[id(tensor)], frozenset()))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight of the artifact."""

    type: str
    bytes: int
    #: Where it is read from.
    places: tuple[object, ...]
    #: ``rows(start, stop)`` gives the checkpoint's rows as float32.
    rows: Callable[[int, int], Floats]
    #: Whether a product reads its codes.
    multiplied: bool = False
    #: What its numbers are stored with.
    offset: float = 0.0


def _rule(matrix: _Matrix, weight: Weight) -> Callable[[int, int], Floats] | None:
    """What the rule makes of a weight's rows in the type in which they are stored, read back."""
    if matrix.type in CODED and LITERT.kept_scales(weight, matrix.type) is None:
        return None

    def rows(start: int, stop: int) -> Floats:
        if matrix.type == LEFT_OUT:
            return weight.floats(start, stop)
        if matrix.offset:
            return (weight.floats(start, stop) + matrix.offset).astype(np.float32) - matrix.offset
        return encode(weight, matrix.type, start, stop, multiplied=matrix.multiplied).floats()

    return rows


def _agreeing(embedding: _Matrix, head: _Matrix, path: Path) -> _Matrix:
    """An embedding whose tied head has bytes of its own: both must give the same numbers."""

    def rows(start: int, stop: int) -> Floats:
        values = embedding.rows(start, stop)
        if not np.array_equal(values, head.rows(start, stop)):
            raise CheckpointError(f"{path}: {HEAD} differs from {EMBEDDING}, to which the checkpoint ties it")
        return values

    return _Matrix(embedding.type, embedding.bytes, embedding.places, rows)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The bytes of a tensor in the file."""

    model: Model
    buffer: Buffer
    name: str

    @property
    def place(self) -> tuple[int, Buffer]:
        """Where it lies; a buffer's own offset counts from the beginning of its model."""
        return self.model.start, self.buffer

    def read(self, start: int, count: int, dtype: str) -> NDArray[np.generic]:
        """``count`` items of a NumPy ``dtype`` from item ``start`` on."""
        values = np.empty(count, dtype)
        offset = self.model.start + self.buffer.offset + start * values.itemsize
        self.model.shard.read_into(values.view(np.uint8).data, offset, f"tensor {shown(self.name)}")
        return values


class _Tensors:
    """The named tensors of all models, and their nameless constants."""

    def __init__(self, models: Sequence[Model], offset_of: Callable[[str], float]) -> None:
        self._models, self._offset_of = models, offset_of
        self.path = models[0].shard.path if models else Path()
        self._found: dict[str, list[tuple[Model, Subgraph, int]]] = {}
        self._vectors: dict[bytes, _Stretch] | None = None
        self._uses = {id(subgraph): _uses(subgraph) for model in models for subgraph in model.subgraphs}
        for model in models:
            for subgraph in model.subgraphs:
                for index, tensor in enumerate(subgraph.tensors):
                    self._found.setdefault(tensor.name, []).append((model, subgraph, index))

    @property
    def names(self) -> Mapping[str, object]:
        """Names of tensors."""
        return self._found

    def error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {shown(name)} {problem}")

    def matrix(self, name: str, weight: Weight) -> _Matrix:
        """A weight by the name of its tensor, a vector without one by its numbers."""
        places = self._found.get(name)
        if not places:
            return self._vector(name, weight)
        if len(places) > _MOST_PLACES:
            raise self.error(name, f"is in {len(places)} places")
        read = [self._one(place, name, weight) for place in places]
        if any((one.places, one.type) != (read[0].places, read[0].type) for one in read):
            raise self.error(name, "is held in two ways")
        return read[0]

    def _one(self, place: tuple[Model, Subgraph, int], name: str, weight: Weight) -> _Matrix:
        model, subgraph, index = place
        tensor = subgraph.tensors[index]
        type = TYPES.get(tensor.type)
        uses = self._uses[id(subgraph)].get(index, frozenset())
        if not uses:
            raise self.error(name, "is used by no operator")
        if type in BITS:
            return self._coded(model, subgraph, tensor, uses, weight)
        if type is None or tensor.scaled or (type == FLOAT16 and uses != _DEQUANTIZED):
            raise self.error(name, f"has type {tensor.type} or is used in a way that is not read")
        shape = tensor.shape
        size = math.prod(shape) * _WIDTHS[type]
        stretch = self._stretch(model, tensor, size)
        width = shape[-1] if shape else 1
        values = _Values(stretch, "<f4" if type == FLOAT else "<f2", width)
        return _Matrix(type, size, (stretch.place,), self._as_rows(name, shape, weight, values))

    def _coded(
        self,
        model: Model,
        subgraph: Subgraph,
        tensor: Tensor,
        uses: frozenset[tuple[str, int]],
        weight: Weight,
    ) -> _Matrix:
        products = self.products(model, subgraph, tensor, uses)
        if tensor.rowwise is not None:
            return _Matrix(
                _PER_ROW[TYPES[tensor.type]],
                products.codes.buffer.size + products.scales.buffer.size,
                (products.codes.place, products.scales.place),
                self._as_rows(tensor.name, tensor.shape, weight, products),
                _MULTIPLIED in uses,
            )
        rows, blocks = tensor.shape[0], tensor.shape[1] // products.block
        sums = self._sums(model, subgraph, tensor.name, (rows, blocks))
        values = replace(products, sums=sums)
        parts = [values.codes, values.scales] if sums is None else [values.codes, values.scales, sums]
        return _Matrix(
            INT4 if sums is None else INT4_SUMS,
            sum(part.buffer.size for part in parts),
            tuple(part.place for part in parts),
            self._as_rows(tensor.name, tensor.shape, weight, values),
            _MULTIPLIED in uses,
        )

    def products(
        self, model: Model, subgraph: Subgraph, tensor: Tensor, uses: frozenset[tuple[str, int]]
    ) -> Codes:
        """Codes times scales of a tensor that is read by ``uses``, without sums."""
        name, scheme = tensor.name, tensor.blockwise
        if len(tensor.shape) != 2 or not uses <= _CODED_USES:
            raise self.error(name, "has codes that are used in a way that is not read")
        rows, columns = tensor.shape
        if tensor.rowwise is not None and scheme is None:
            return self._row_products(model, tensor, tensor.rowwise)
        if scheme is None or tensor.scaled or TYPES.get(tensor.type) != INT4:
            raise self.error(name, "has codes that are scaled in a way that is not read")
        block = scheme.block
        if block < 2 or block % 2 or columns % block or scheme.dimension != 0 or scheme.zero_points != -1:
            raise self.error(name, f"has blocks of {block} codes in {columns} columns, which are not read")
        if not 0 <= scheme.scales < len(subgraph.tensors):
            raise self.error(name, f"has scales in tensor {scheme.scales} of {len(subgraph.tensors)}")
        scales = subgraph.tensors[scheme.scales]
        blocks = columns // block
        if TYPES.get(scales.type) != FLOAT16 or scales.shape != (rows, blocks):
            raise self.error(name, f"has scales of type {scales.type} and shape {shown(scales.shape)}")
        codes = self._stretch(model, tensor, rows * columns // 2)
        factors = self._stretch(model, scales, rows * blocks * 2)
        return Codes(codes, factors, None, columns, block, 4)

    def _row_products(self, model: Model, tensor: Tensor, scheme: Rowwise) -> Codes:
        """The same where every row has a scale, which stands in the graph."""
        name, (rows, columns), bits = tensor.name, tensor.shape, BITS[TYPES[tensor.type]]
        if not columns or columns * bits % 8 or scheme.dimension != 0:
            raise self.error(name, f"has rows of {columns} codes, or other scales than theirs")
        zeros = scheme.zero_points
        if scheme.scales.size != rows * 4 or zeros is None or zeros.size != rows * 8:
            raise self.error(name, f"has not a scale and a zero point for each of its {rows} rows")
        if _Stretch(model, zeros, name).read(0, rows, "<i8").any():
            raise self.error(name, "has zero points, which are not read")
        codes = self._stretch(model, tensor, rows * columns * bits // 8)
        return Codes(codes, _Stretch(model, scheme.scales, name), None, columns, columns, bits, in_graph=True)

    def _sums(self, model: Model, subgraph: Subgraph, name: str, shape: tuple[int, int]) -> _Stretch | None:
        """What corrects blocks with negative scales, if the function that has the codes has it."""
        for other, owner, index in self._found.get(sums_name(name), [])[:_MOST_PLACES]:
            if other is not model or owner is not subgraph:
                continue
            tensor = subgraph.tensors[index]
            uses = self._uses[id(subgraph)].get(index, frozenset())
            if TYPES.get(tensor.type) != FLOAT or tensor.shape != shape or uses != {_MULTIPLIED}:
                raise self.error(
                    tensor.name, "has another shape or type, or is used in a way that is not read"
                )
            return self._stretch(model, tensor, math.prod(shape) * 4)
        return None

    def _stretch(self, model: Model, tensor: Tensor, size: int) -> _Stretch:
        if tensor.buffer is None:
            raise self.error(tensor.name, "has no data")
        if tensor.buffer.size != size:
            raise self.error(
                tensor.name, f"has {shown(tensor.buffer.size)} bytes, its shape takes {shown(size)}"
            )
        return _Stretch(model, tensor.buffer, tensor.name)

    def _as_rows(
        self, name: str, shape: tuple[int, ...], weight: Weight, values: _Values | Codes
    ) -> Callable[[int, int], Floats]:
        """The checkpoint's rows of a tensor that has its shape or holds its experts side by side."""
        flat = (weight.rows, weight.columns)
        if shape in (weight.shape, flat) or (flat[0] == 1 and shape == flat[1:]):
            return values
        if len(weight.shape) == 3 and shape == (weight.shape[1], weight.shape[0] * weight.columns):
            return _Expert(values, weight.shape[1], weight.columns)
        raise self.error(name, f"has shape {shown(shape)}, the checkpoint {shown(weight.shape)}")

    def _vector(self, name: str, weight: Weight) -> _Matrix:
        if weight.size * 4 > _VECTOR_BYTES:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        if self._vectors is None:
            self._vectors = dict(self._constants())
        offset = self._offset_of(name)
        floats = weight.floats(0, weight.rows)
        content = np.ascontiguousarray(floats + offset if offset else floats, "<f4").tobytes()
        stretch = self._vectors.get(content)
        if stretch is None and (floats + offset == 1).all():
            return _Matrix(LEFT_OUT, 0, (), _Ones(weight.columns, offset), offset=offset)
        if stretch is None:
            raise CheckpointError(f"{self.path}: {name} is missing: no constant has its numbers")
        values = _Values(stretch, "<f4", weight.columns, offset)
        return _Matrix(FLOAT, len(content), (stretch.place,), values, offset=offset)

    def _constants(self) -> Iterator[tuple[bytes, _Stretch]]:
        """Small float32 constants by their bytes; as many as a graph may have."""
        room, seen = GRAPH_BYTES, set()
        for model in self._models:
            for tensor in (one for subgraph in model.subgraphs for one in subgraph.tensors):
                buffer = tensor.buffer
                if TYPES.get(tensor.type) != FLOAT or buffer is None or (model.start, buffer) in seen:
                    continue
                if buffer.size > _VECTOR_BYTES or tensor.scaled:
                    continue
                seen.add((model.start, buffer))
                room -= buffer.size
                if room < 0:
                    raise CheckpointError(f"{self.path}: its constants are larger than a graph's may be")
                stretch = _Stretch(model, buffer, tensor.name)
                yield stretch.read(0, buffer.size, "u1").tobytes(), stretch


def _uses(subgraph: Subgraph) -> Mapping[int, frozenset[tuple[str, int]]]:
    """Operators that read each tensor, and the place among their inputs."""
    found: dict[int, set[tuple[str, int]]] = {}
    for operator in subgraph.operators:
        for index, tensor in enumerate(operator.inputs):
            found.setdefault(tensor, set()).add((OPERATORS.get(operator.code, str(operator.code)), index))
    return {tensor: frozenset(uses) for tensor, uses in found.items()}


@dataclass(frozen=True, slots=True)
class _Ones:
    """Rows of a factor of 1 that the graph does without, less ``offset``."""

    columns: int
    offset: float

    def __call__(self, start: int, stop: int) -> Floats:
        return np.full((stop - start, self.columns), 1 - self.offset, np.float32)


@dataclass(frozen=True, slots=True)
class _Values:
    """Rows of numbers, which are stored with ``offset`` added."""

    stretch: _Stretch
    dtype: str
    columns: int
    offset: float = 0.0

    def __call__(self, start: int, stop: int) -> Floats:
        count = (stop - start) * self.columns
        values = self.stretch.read(start * self.columns, count, self.dtype)
        return values.astype(np.float32).reshape(stop - start, self.columns) - self.offset


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows of codes, the first of a byte in its lowest bits, times their block's scale, plus its sum."""

    codes: _Stretch
    scales: _Stretch
    sums: _Stretch | None
    columns: int
    block: int
    bits: int
    #: Whether ``scales`` are those of rows, float32 numbers in the graph.
    in_graph: bool = False

    def __call__(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, float32 ``[rows, columns]``."""
        count, blocks = stop - start, self.columns // self.block
        width = self.columns * self.bits // 8
        packed = self.codes.read(start * width, count * width, "u1").view(np.uint8)
        scales = self.factors(start, stop)
        sums = None
        if self.sums is not None:
            sums = (
                self.sums.read(start * blocks, count * blocks, "<f4").view(np.float32).reshape(count, blocks)
            )
        return dequantised(packed, scales, sums, self.columns, self.bits)

    def factors(self, start: int, stop: int) -> NDArray[np.float16] | NDArray[np.float32]:
        """Scales of rows: float16 ``[rows, blocks]``, or float32 ``[rows, 1]`` where each row has one."""
        if self.in_graph:
            return self.scales.read(start, stop - start, "<f4").view(np.float32).reshape(-1, 1)
        blocks = self.columns // self.block
        found = self.scales.read(start * blocks, (stop - start) * blocks, "<f2")
        return found.view(np.float16).reshape(-1, blocks)


@dataclass(frozen=True, slots=True)
class _Expert:
    """Rows of experts, ``columns`` of each, that stand side by side in rows of a matrix of ``height``."""

    values: _Values | Codes
    height: int
    columns: int

    def __call__(self, start: int, stop: int) -> Floats:
        parts = [np.empty((0, self.columns), np.float32)]
        while start < stop:
            expert, first = divmod(start, self.height)
            last = min(first + stop - start, self.height)
            wide = self.values(first, last)
            parts.append(wide[:, expert * self.columns : (expert + 1) * self.columns])
            start += last - first
        return np.concatenate(parts)
