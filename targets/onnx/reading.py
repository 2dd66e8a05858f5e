"""ONNX artifacts read back: every weight is found through the nodes that use it.

Independent of how they were written: the graph alone says where the bytes are and what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.safetensors import Shard
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError
from converter.system.untrusted import shown
from targets.onnx.dequantisation import ITEM_BYTES, Codes, Floats, Numbers, Scheme, Stretch
from targets.onnx.packing import FROM_FLOATS
from targets.onnx.protobuf import External, Graph, Initializer, Node, read_graph
from targets.onnx.storage import OFF_LATTICE, Storage, expert_name, stored_name, type_name
from targets.onnx.writing import quantised
from targets.target import StoredTensor

_MATMUL: Final = "com.microsoft.MatMulNBits"
_GATHER: Final = "com.microsoft.GatherBlockQuantized"
_BITS: Final = (2, 4, 8)
_BLOCKS: Final = (16, 32, 64, 128, 256)
_NUMBERS: Final = ("FLOAT", "FLOAT16", "BFLOAT16")
#: Types of scales that this target writes.
_SCALES: Final = ("FLOAT", "FLOAT16")
#: ONNX's numbers of the types in which a Cast keeps numbers.
_CASTS: Final = {1: "FLOAT", 10: "FLOAT16", 16: "BFLOAT16"}


def files(artifact: Path) -> list[Path]:
    """The graph's file and every file with data of its initializers; raises ``CheckpointError`` if one is
    missing."""
    places = (one.data for one in read_graph(artifact).initializers.values())
    names = {place.location for place in places if isinstance(place, External)}
    found = [artifact.parent / name for name in sorted(names)]
    for path in found:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, the file with the weights of {artifact.name}")
    return [artifact, *found]


def describe(artifact: Path, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every weight of ``checkpoint`` as stored in ``artifact`` (``model.onnx``).

    Raises ``CheckpointError`` for a damaged graph, and for a weight that is missing, has another shape or is
    used in a way that is not read. Raises it as well for data that are missing, cut off or outside the
    model's directory.
    """
    graph = _Connected(read_graph(artifact))
    stored = {}
    for key, weight in checkpoint.weights.items():
        matrices = list(_matrices(graph, key, weight.shape))
        stored[key] = StoredTensor(
            weight=key,
            stored_as=stored_name(key),
            type="+".join(sorted({matrix.type for matrix in matrices})),
            shape=weight.shape,
            bytes=sum(matrix.bytes for matrix in matrices),
            floats=_Rows(matrices),
            rule=_rule(weight, matrices),
        )
    return stored


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of the artifact; a vector is one row."""

    rows: int
    type: str
    bytes: int
    #: ``rows_of(start, stop)`` gives rows as float32.
    rows_of: Numbers | Codes


class _Rows:
    """Rows of a weight whose matrices, all of one height, are stacked."""

    def __init__(self, matrices: Sequence[_Matrix]) -> None:
        self._matrices = matrices

    def __call__(self, start: int, stop: int) -> Floats:
        height = self._matrices[0].rows
        if not 0 <= start <= stop <= height * len(self._matrices):
            raise ValueError(f"rows {start}..{stop} of {height * len(self._matrices)}")
        parts = [
            matrix.rows_of(max(start - index * height, 0), min(stop - index * height, height))
            for index, matrix in enumerate(self._matrices)
            if start < (index + 1) * height and stop > index * height
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [self._matrices[0].rows_of(0, 0)])


def _rule(weight: Weight, matrices: Sequence[_Matrix]) -> Callable[[int, int], Floats] | None:
    """Rows of a weight as this target stores them in the form of ``matrices``, read back as they are;
    ``None`` for a form that it never writes."""
    first = matrices[0].rows_of
    if len({_form(matrix.rows_of) for matrix in matrices}) > 1:
        return None
    if isinstance(first, Numbers):
        return partial(_ruled_numbers, weight, first)
    scheme = first.scheme
    name = _type_name(scheme)
    coded = Storage().held.find(name)
    if coded is None or scheme.shape[1] % coded.block or first.scales_dtype not in _SCALES:
        return None
    written = name in OFF_LATTICE.values() or Storage().held.kept_scales(weight, name) is not None
    return partial(_ruled_codes, weight, first) if written else None


def _type_name(scheme: Scheme) -> str:
    """The type of codes, as this target calls it."""
    return type_name(scheme.bits, scheme.block)


def _form(rows: Numbers | Codes) -> tuple[object, ...]:
    if isinstance(rows, Numbers):
        return rows.dtype, rows.casts
    return rows.scheme.bits, rows.scheme.block, rows.scheme.casts, rows.scales_dtype


def _ruled_numbers(weight: Weight, stored: Numbers, start: int, stop: int) -> Floats:
    packed = FROM_FLOATS[stored.dtype](weight.floats(start, stop)).tobytes()
    stretch = Stretch(weight.name, len(packed), packed)
    return Numbers(stretch, stored.dtype, stop - start, weight.columns, stored.casts, False)(0, stop - start)


def _ruled_codes(weight: Weight, stored: Codes, start: int, stop: int) -> Floats:
    storage, held = Storage(scales=stored.scales_dtype), _type_name(stored.scheme)
    parts = [part.tobytes() for part in quantised(weight, held, storage, start, stop)[:2]]
    codes, scales = (Stretch(weight.name, len(part), part) for part in parts)
    return Codes(stored.scheme, codes, scales, stored.scales_dtype)(0, stop - start)


def _matrices(graph: _Connected, key: str, shape: tuple[int, ...]) -> Iterator[_Matrix]:
    """The matrices whose rows are those of a weight: one, or one for each expert."""
    if len(shape) < 3 or stored_name(key) in graph.initializers:
        yield _matrix(graph, stored_name(key), shape)
        return
    for expert in range(shape[0]):
        yield _matrix(graph, stored_name(expert_name(key, expert)), shape[1:])


def _matrix(graph: _Connected, name: str, shape: tuple[int, ...]) -> _Matrix:
    """The matrix in the initializer ``name``, which has to have the checkpoint's ``shape``."""
    if name not in graph.initializers:
        raise CheckpointError(f"{graph.path}: initializer {name} is missing")
    one = graph.initializers[name]
    return _coded(graph, one, shape) if one.dtype == "UINT8" else _numbers(graph, one, shape)


class _Connected:
    """A graph with its connections and the data files that are open."""

    def __init__(self, graph: Graph) -> None:
        self.path = graph.path
        self.initializers = graph.initializers
        self.users: dict[str, list[tuple[Node, int]]] = {}
        self.makers: dict[str, Node] = {}
        self._shards: dict[str, Shard] = {}
        for node in graph.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for index, name in enumerate(node.inputs):
                if name:  # an input that is left out has none
                    self.users.setdefault(name, []).append((node, index))

    def error(self, one: Initializer, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: initializer {shown(one.name)} {problem}")

    def stretch(self, one: Initializer, dtypes: Sequence[str]) -> Stretch:
        """The bytes of an initializer of one of ``dtypes``; their place is checked here."""
        if one.dtype not in dtypes:
            raise self.error(one, f"has type {one.dtype}, expected {' or '.join(dtypes)}")
        size = math.prod(one.shape) * ITEM_BYTES[one.dtype]
        place = one.data
        if isinstance(place, bytes):
            return Stretch(one.name, size, place)
        if place.location not in self._shards:
            self._shards[place.location] = Shard(self.path.parent / place.location)
        shard = self._shards[place.location]
        if place.length not in (None, size):
            raise self.error(
                one, f"has {place.length} bytes, its shape {shown(one.shape)} takes {shown(size)}"
            )
        if place.offset + size > shard.size:
            raise CheckpointError(
                f"{shard.path}: cut off, or another model's: initializer {shown(one.name)} ends at byte "
                f"{shown(place.offset + size)} of {shard.size}"
            )
        return Stretch(one.name, size, shard, place.offset)

    def cast(self, one: Initializer, node: Node) -> frozenset[str]:
        """The type to which a Cast on the way from an initializer leads."""
        to = node.attributes.get("to")
        if not isinstance(to, int) or to not in _CASTS:
            raise self.error(one, f"is cast to type {shown(to)}, which does not keep its numbers")
        return frozenset([_CASTS[to]])


def _numbers(graph: _Connected, one: Initializer, shape: tuple[int, ...]) -> _Matrix:
    """A matrix or vector that is stored as numbers."""
    stretch = graph.stretch(one, _NUMBERS)
    casts, transposed = _ways(graph, one)
    found = one.shape[::-1] if transposed else one.shape
    if found not in (shape, shape or (1,)):
        raise graph.error(one, f"is used as a weight of shape {shown(found)}, expected {shown(shape)}")
    rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
    numbers = Numbers(stretch, one.dtype, rows, columns, casts, transposed)
    return _Matrix(rows, one.dtype, stretch.size, numbers)


def _ways(graph: _Connected, one: Initializer) -> tuple[frozenset[str], bool]:
    """Types to which an initializer is cast on the way to the nodes that compute with it, and whether it is
    the transpose of what they take for the checkpoint's weight. The checkpoint's matrices are
    ``[outputs, inputs]``."""
    casts: frozenset[str] = frozenset()
    found: set[bool] = set()
    waiting, seen = [(one.name, False)], set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        name, transposed = value
        for node, index in graph.users.get(name, []):
            if node.operator not in ("Cast", "Identity", "Transpose"):
                found.add(transposed != _takes_transposed(node, index, one))
                continue
            if node.operator == "Cast":
                casts |= graph.cast(one, node)
            exchanged = node.operator == "Transpose" and _exchanges(graph, one, node)
            waiting.extend((output, transposed != exchanged) for output in node.outputs)
    if len(found) != 1:
        raise graph.error(one, "is used in two ways" if found else "is used by no node")
    return casts, found.pop()


def _exchanges(graph: _Connected, one: Initializer, node: Node) -> bool:
    """Whether a ``Transpose`` of an initializer exchanges its two dimensions."""
    order = node.attributes.get("perm", (1, 0))
    if len(one.shape) != 2 or order not in ((1, 0), (0, 1)):
        raise graph.error(one, "is transposed in a way that is not read")
    return order == (1, 0)


def _takes_transposed(node: Node, index: int, one: Initializer) -> bool:
    """Whether a node wants ``[inputs, outputs]`` of a matrix that it multiplies with."""
    if len(one.shape) != 2 or index != 1:
        return False
    return node.operator == "MatMul" or (node.operator == "Gemm" and not node.attributes.get("transB"))


def _coded(graph: _Connected, one: Initializer, shape: tuple[int, ...]) -> _Matrix:
    """A matrix that is stored as codes and scales."""
    schemes = {_scheme(graph, one, node, index) for node, index in graph.users.get(one.name, [])}
    if len(schemes) != 1:
        raise graph.error(one, "is used in two ways" if schemes else "is used by no node")
    scheme = schemes.pop()
    if scheme.shape != shape:
        raise graph.error(one, f"is used as a weight of shape {shown(scheme.shape)}, expected {shown(shape)}")
    scales = graph.initializers[scheme.scales]
    expected = (shape[0], scheme.blocks)
    if scales.shape not in (expected, (math.prod(expected),)):
        raise graph.error(scales, f"has shape {shown(scales.shape)}, expected {expected}")
    codes = graph.stretch(one, ("UINT8",))
    factors = graph.stretch(scales, _NUMBERS)
    rows = Codes(scheme, codes, factors, scales.dtype)
    return _Matrix(shape[0], _type_name(scheme), codes.size + factors.size, rows)


def _scheme(graph: _Connected, one: Initializer, node: Node, index: int) -> Scheme:
    """How a node reads the codes of an initializer; raises ``CheckpointError`` for what is not read."""
    if (node.operator, index) not in ((_MATMUL, 1), (_GATHER, 0)):
        raise graph.error(one, f"is used by {shown(node.operator)}, which is not read")
    if any(node.inputs[3:5]):
        raise graph.error(one, "is used with zero points or an order of its own, which are not read")
    bits, block = node.attributes.get("bits", 4), node.attributes.get("block_size", 128)
    if bits not in _BITS or block not in _BLOCKS:
        raise graph.error(
            one, f"has blocks of {shown(block)} codes of {shown(bits)} bits, which are not read"
        )
    assert isinstance(bits, int)
    assert isinstance(block, int)
    described = _gathered if node.operator == _GATHER else _multiplied
    shape, stored, row_bytes = described(graph, one, node, bits, block)
    if one.shape != stored or 0 in shape:
        raise graph.error(one, f"has shape {shown(one.shape)}, which its node does not take")
    return Scheme(shape, bits, block, row_bytes, *_scales(graph, one, node))


_Described = tuple[tuple[int, ...], tuple[int, ...], int]


def _gathered(graph: _Connected, one: Initializer, node: Node, bits: int, block: int) -> _Described:
    """Shape of the matrix that ``GatherBlockQuantized`` reads, shape of its codes, bytes of a row."""
    if (node.attributes.get("gather_axis", 0), node.attributes.get("quantize_axis", 1)) != (0, 1):
        raise graph.error(one, "is gathered along other axes than rows of blocks, which is not read")
    rows, row_bytes = one.shape if len(one.shape) == 2 else (0, 0)
    return (rows, row_bytes * 8 // bits), (rows, row_bytes), row_bytes


def _multiplied(graph: _Connected, one: Initializer, node: Node, bits: int, block: int) -> _Described:
    """Shape of the matrix that ``MatMulNBits`` reads, shape of its codes, bytes of a row."""
    rows, columns = node.attributes.get("N"), node.attributes.get("K")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise graph.error(one, f"is used with N {shown(rows)} and K {shown(columns)}, expected numbers")
    blocks, size = -(-columns // block), block * bits // 8
    return (rows, columns), (rows, blocks, size), blocks * size


def _scales(graph: _Connected, one: Initializer, node: Node) -> tuple[str, frozenset[str]]:
    """The initializer with a node's scales, and the types to which they are cast on the way."""
    casts: frozenset[str] = frozenset()
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    seen: set[str] = set()
    while name not in graph.initializers:
        maker = graph.makers.get(name)
        if maker is None or maker.operator not in ("Cast", "Identity") or name in seen or not maker.inputs:
            raise graph.error(one, "has scales that no initializer holds")
        casts |= graph.cast(one, maker) if maker.operator == "Cast" else frozenset()
        seen.add(name)
        name = maker.inputs[0]
    return name, casts
