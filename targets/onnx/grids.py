"""Static grids of activations, to which a mobile checkpoint's training rounded what modules take and give.

``--static-activations`` puts them into the graph: a ``QuantizeLinear`` and a ``DequantizeLinear`` with the
checkpoint's scale in front of a product or behind it. A value becomes ``scale * code``, the code its quotient
by the scale rounded to the nearest whole number, of two the even one, and not beyond -128 and 127. That is
what transformers computes (5.23, ``integrations/gemma_quant.py``). A scale of 0 stands for no grid. Scales of
caches transformers does not read, and this target does not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Scales
from converter.errors import UsageError
from targets.onnx.accuracy import parse
from targets.onnx.storage import Storage

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

#: The operators of a pair.
QUANTISE: Final = "QuantizeLinear"
DEQUANTISE: Final = "DequantizeLinear"


def grids_of(checkpoint: Checkpoint, storage: Storage) -> Mapping[str, Scales]:
    """The scales that stand in the graph, by module: none unless ``storage`` says so. Raises ``UsageError``
    where it does and the checkpoint has none."""
    if not storage.static_activations:
        return {}
    grids = checkpoint.grids
    if not grids:
        raise UsageError(
            "--static-activations: the checkpoint has no static scales of activations, as mobile ones have: "
            "leave the option out"
        )
    return grids


def grid_warnings(checkpoint: Checkpoint, storage: Storage) -> list[str]:
    """A line about the checkpoint's scales that the graph does not apply, none where there are none."""
    modules = 0 if storage.static_activations else len(checkpoint.grids)
    caches = sum(one.key is not None or one.value is not None for one in checkpoint.scales.values())
    told = [
        f"{count} {what}" for count, what in ((modules, "modules"), (caches, "caches of attentions")) if count
    ]
    if not told:
        return []
    remedy = "; --static-activations applies those of the modules" if modules else ""
    return [
        f"onnx: {' and '.join(told)} have static scales of activations, which the model does not "
        f"apply{remedy}"
    ]


def has_grids(model: bytes) -> bool:
    """Whether a serialised model rounds activations to static grids."""
    return bool(_pairs(parse(model).graph))


def without_grids(model: bytes) -> bytes:
    """A serialised model (its external data left alone) without its grids: what goes into a pair of both
    operators with the same scale and the same zero point comes out of it. Other pairs stay. Equal arguments
    give equal bytes."""
    proto = parse(model)
    graph = proto.graph
    pairs = _pairs(graph)
    gone = {id(node) for pair in pairs for node in pair}
    sources = {last.output[0]: first.input[0] for first, last in pairs}
    outputs = {value.name for value in graph.output}
    kept = [node for node in graph.node if id(node) not in gone]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    for node in copies:
        for index, name in enumerate(node.input):
            node.input[index] = _source(sources, name)
    del graph.node[:]
    graph.node.extend(copies)
    for name in outputs & sources.keys():
        graph.node.add(op_type="Identity", input=[_source(sources, name)], output=[name])
    changed: bytes = proto.SerializeToString(deterministic=True)
    return changed


def _source(sources: Mapping[str, str], name: str) -> str:
    """What a value is without grids, which may follow one another."""
    while name in sources:
        name = sources[name]
    return name


def _pairs(graph: GraphProto) -> list[tuple[NodeProto, NodeProto]]:
    """Quantisations of the main graph with the dequantisation of each, if it has no other reader."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if (node.domain, node.op_type) == ("", QUANTISE) and node.output:
            after = readers.get(node.output[0], [])
            if len(after) == 1 and _undoes(after[0], node):
                found.append((node, after[0]))
    return found


def _undoes(after: NodeProto, before: NodeProto) -> bool:
    return (after.domain, after.op_type) == ("", DEQUANTISE) and after.input[1:] == before.input[1:]
