"""``accuracy_level`` of MatMulNBits: the precision of activations in a quantised matrix product.

Of onnxruntime's levels, 0 leaves the choice to the kernel, which on CPU computes in float32. 1 is float32,
2 float16, 3 bfloat16, and 4 rounds activations to int8 (its documentation of the contrib operator
``com.microsoft.MatMulNBits``). A kernel may take a more accurate level than the one that it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LEVELS: Final = range(5)
_ATTRIBUTE: Final = "accuracy_level"
_OPERATOR: Final = ("com.microsoft", "MatMulNBits")


def with_accuracy_level(model: bytes, level: int) -> bytes:
    """A serialised ONNX model (its external data left alone) in which every MatMulNBits, those of subgraphs
    and functions included, has ``accuracy_level`` = ``level``. Equal arguments give equal bytes."""
    from onnx import helper

    proto = parse(model)
    for node in _products(proto):
        kept = [attribute for attribute in node.attribute if attribute.name != _ATTRIBUTE]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(_ATTRIBUTE, level)])
    changed: bytes = proto.SerializeToString(deterministic=True)
    return changed


def accuracy_levels(model: bytes) -> tuple[int, ...]:
    """The distinct levels of a serialised model's MatMulNBits, ascending; empty where it has none."""
    return tuple(sorted({_level(node) for node in _products(parse(model))}))


def parse(model: bytes) -> ModelProto:
    """The model without its external data; raises ``ValueError`` for bytes that are none."""
    from onnx import ModelProto

    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's own, which is no ValueError
        raise ValueError("not in ONNX's format") from error
    return proto


def graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every graph that is an attribute of a node, at any depth, in functions too."""
    yield proto.graph
    bodies = [proto.graph, *proto.functions]
    while bodies:
        for node in bodies.pop().node:
            for attribute in node.attribute:
                inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                yield from inner
                bodies += inner


def _products(proto: ModelProto) -> Iterator[NodeProto]:
    for body in (*graphs(proto), *proto.functions):
        for node in body.node:
            if (node.domain, node.op_type) == _OPERATOR:
                yield node


def _level(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == _ATTRIBUTE), 0)
