"""What a ``model.onnx`` says about its weights: nodes and initializers, without their data.

The file may come from a stranger. A message of two bytes takes 170 in protobuf's memory, so the graph is
taken apart here (https://protobuf.dev/programming-guides/encoding/). protobuf parses one node or one
initializer at a time, of which only what leads to weights is kept. Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, NodeProto, StringStringEntryProto, TensorProto, numpy_helper

from converter.errors import CheckpointError
from converter.system.untrusted import read_bytes, shown
from targets.onnx.dequantisation import ITEM_BYTES

_Message = TypeVar("_Message", bound=Message)

#: Largest graph that is read, in bytes; one of 30 layers with 128 experts each has 8 MB.
GRAPH_BYTES: Final = 64 << 20
#: Most nodes, connections, attributes and initializers together (the same graph has 155 000), and the largest
#: node or initializer in bytes.
_MOST_PARTS: Final = 1 << 19
_PART_BYTES: Final = 4 << 20
_MOST_DIMENSIONS: Final = 8
_LARGEST_SIZE: Final = 1 << 48

#: Attributes that say how a node reads a weight.
_ATTRIBUTES: Final = frozenset(
    ("K", "N", "accuracy_level", "bits", "block_size", "gather_axis", "perm", "quantize_axis", "to", "transB")
)

#: The wire type of strings, bytes and messages.
LENGTH_DELIMITED: Final = 2
_MODEL_GRAPH: Final = 7
_MODEL_PROPERTY: Final = 14
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5


@dataclass(frozen=True, slots=True)
class External:
    """Bytes in another file."""

    #: The file's path from the graph's directory.
    location: str
    #: Where they begin.
    offset: int
    #: How many there are; ``None`` for as many as the initializer needs.
    length: int | None


@dataclass(frozen=True, slots=True)
class Initializer:
    """A tensor of the graph."""

    name: str
    #: Its ONNX type (``UINT8``).
    dtype: str
    shape: tuple[int, ...]
    #: Its data, here or in another file.
    data: External | bytes


@dataclass(frozen=True, slots=True)
class Node:
    """An operator."""

    operator: str
    #: Names of its inputs.
    inputs: tuple[str, ...]
    #: Names of its outputs.
    outputs: tuple[str, ...]
    #: Those that are integers and say how it reads a weight, by name.
    attributes: Mapping[str, int | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Graph:
    """Initializers by name, and all nodes. Operators of other domains than ONNX's own are called
    ``com.microsoft.MatMulNBits``."""

    path: Path
    initializers: Mapping[str, Initializer]
    nodes: tuple[Node, ...]
    #: What the model says about itself (``metadata_props``).
    properties: Mapping[str, str]


def read_graph(path: Path) -> Graph:
    """Read the graph in a file, subgraphs included; raises ``CheckpointError``."""
    data = memoryview(read_bytes(path, GRAPH_BYTES))
    top = list(islice(_fields(data, path), _MOST_PARTS))
    graphs = [payload for number, payload in top if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise CheckpointError(f"{path}: not an ONNX model: it holds {len(graphs)} graphs, expected one")
    parts = _Parts(path)
    try:
        for number, payload in _fields(graphs[0], path):
            parts.make_room(1)
            if number == _GRAPH_NODE:
                parts.add_node(_parsed(NodeProto(), payload, path))
            elif number == _GRAPH_INITIALIZER:
                parts.add_initializer(_parsed(TensorProto(), payload, path))
        properties = {
            _text(one.key): _text(one.value)
            for number, payload in top
            if number == _MODEL_PROPERTY
            for one in (_parsed(StringStringEntryProto(), payload, path),)
        }
    except DecodeError as error:
        raise CheckpointError(f"{path}: not an ONNX model: a part of its graph is damaged") from error
    return Graph(path, parts.initializers, tuple(parts.nodes), properties)


def _fields(data: memoryview, path: Path) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of the length-delimited fields of a message; others are passed over."""
    for number, wire, payload in fields(data, path):
        if wire == LENGTH_DELIMITED:
            yield number, payload


def fields(data: memoryview, path: Path) -> Iterator[tuple[int, int, memoryview]]:
    """Number, wire type and content of every field of a message, a number's content as it is encoded; raises
    ``CheckpointError`` for bytes that are no message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place, path)
        wire = tag & 7
        size = {1: 8, 5: 4}.get(wire)
        if wire == 0:
            size = _varint(data, place, path)[1] - place
        elif wire == LENGTH_DELIMITED:
            size, place = _varint(data, place, path)
        if size is None or size > len(data) - place:
            raise CheckpointError(f"{path}: not a whole ONNX model: a field reaches beyond its end")
        yield tag >> 3, wire, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int, path: Path) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits in each, the lowest first; and the place behind it."""
    value = 0
    for shift, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, place + shift + 1
    raise CheckpointError(f"{path}: not a whole ONNX model: a number has no end")


def _parsed(message: _Message, payload: memoryview, path: Path) -> _Message:
    if len(payload) > _PART_BYTES:
        raise CheckpointError(f"{path}: a part of its graph has {len(payload)} bytes; it is not read")
    message.ParseFromString(bytes(payload))
    return message


def _text(value: str | bytes) -> str:
    """A string of a message; protobuf gives those that are not UTF-8 as bytes."""
    if isinstance(value, bytes):
        raise DecodeError("not UTF-8")
    return value


class _Parts:
    """What has been read of a graph; takes a bounded number of parts."""

    def __init__(self, path: Path) -> None:
        self.initializers: dict[str, Initializer] = {}
        self.nodes: list[Node] = []
        self._path = path
        self._count = 0

    def add_node(self, node: NodeProto) -> None:
        """Add a node, and what the subgraphs in its attributes hold."""
        self.make_room(len(node.input) + len(node.output) + len(node.attribute))
        attributes: dict[str, int | tuple[int, ...]] = {}
        for attribute in node.attribute:
            if attribute.name in _ATTRIBUTES:
                several = tuple(
                    attribute.ints[: _MOST_DIMENSIONS + 1]
                )  # none of an attribute of another type
                attributes[attribute.name] = attribute.i if attribute.type == AttributeProto.INT else several
            for graph in (*attribute.graphs, attribute.g):
                self.make_room(len(graph.initializer) + len(graph.node))
                for tensor in graph.initializer:
                    self.add_initializer(tensor)
                for inner in graph.node:
                    self.add_node(inner)
        domain = "" if node.domain in ("", "ai.onnx") else f"{_text(node.domain)}."
        operator = domain + _text(node.op_type)
        self.nodes.append(
            Node(operator, tuple(map(_text, node.input)), tuple(map(_text, node.output)), attributes)
        )

    def add_initializer(self, tensor: TensorProto) -> None:
        """Add an initializer whose type, shape and place make sense by themselves."""
        name = _text(tensor.name)
        where = f"{self._path}: initializer {shown(name)}"
        if name in self.initializers:
            raise CheckpointError(f"{where} is there twice")
        shape = tuple(tensor.dims)
        if len(shape) > _MOST_DIMENSIONS or not all(0 <= size <= _LARGEST_SIZE for size in shape):
            raise CheckpointError(f"{where} has shape {shown(shape)}, which is out of bounds")
        if tensor.data_type not in TensorProto.DataType.values():
            raise CheckpointError(f"{where} has type {tensor.data_type}, which ONNX does not know")
        dtype = TensorProto.DataType.Name(tensor.data_type)
        external = tensor.data_location == TensorProto.EXTERNAL
        data = _external(tensor, where) if external else _inline(tensor, dtype, where)
        self.initializers[name] = Initializer(name, dtype, shape, data)

    def make_room(self, count: int) -> None:
        """Count ``count`` more parts of the graph, before they are looked at."""
        self._count += count
        if self._count > _MOST_PARTS:
            raise CheckpointError(
                f"{self._path}: its graph has more than {_MOST_PARTS} parts; it is not read"
            )


def _external(tensor: TensorProto, where: str) -> External:
    entries = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = Path(location).parts
    if not location.isprintable() or "\\" in location or not parts or ".." in parts or parts[0] == "/":
        raise CheckpointError(
            f"{where} has its data in {shown(location)}, which is no file below the model's directory"
        )
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise CheckpointError(f"{where} has {key} {shown(text)}, expected a number of bytes")
        numbers[key] = None if text is None else int(text)
    return External(location, numbers["offset"] or 0, numbers["length"])


def _inline(tensor: TensorProto, dtype: str, where: str) -> bytes:
    """The bytes of a tensor in the graph itself; none of a type in which no weights are stored."""
    if dtype not in ITEM_BYTES:
        return b""
    if math.prod(tensor.dims) > tensor.ByteSize():
        raise CheckpointError(f"{where} has shape {shown(tuple(tensor.dims))} and less data")
    try:
        data: bytes = numpy_helper.to_array(tensor).tobytes()
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where} has data that do not fit its type and shape") from error
    return data
