"""Options of a conversion to ONNX, inferred from the file that it left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from converter.checkpoint.canonical_names import FINAL_NORM
from converter.checkpoint.opened import Checkpoint
from targets.off_lattice import inferred_off_lattice
from targets.onnx.accuracy import LEVELS
from targets.onnx.grids import QUANTISE
from targets.onnx.protobuf import Graph, Node, read_graph
from targets.onnx.storage import (
    OFF_LATTICE,
    Storage,
    expert_name,
    scales_name,
    stored_name,
    type_name,
)

_PRODUCTS: Final = "com.microsoft.MatMulNBits"
_DESCRIPTIVE: Final = ("license", "repo", "revision")


def inferred_options(artifact: Path, checkpoint: Checkpoint) -> dict[str, object]:
    """See ``targets.target.Target.infer_options``: ``onnx_dtype``, ``onnx_scales``, ``off_lattice``,
    ``accuracy_level``, ``static_activations`` where activations are quantised, and where they are told
    ``license``, ``repo`` and ``revision``. Raises ``CheckpointError`` for a damaged file."""
    graph = read_graph(artifact)
    norm = graph.initializers.get(stored_name(FINAL_NORM))
    half = norm is not None and norm.dtype == "FLOAT16"
    scales = {graph.initializers[name].dtype for name in _scales(checkpoint) if name in graph.initializers}
    found: dict[str, object] = {
        "onnx_dtype": "float16" if half else "float32",
        "onnx_scales": "f16" if half or scales == {"FLOAT16"} else "f32",
        "off_lattice": inferred_off_lattice(
            checkpoint.weights.values(),
            _types(graph, checkpoint),
            {option: Storage(off_lattice=option).held for option in OFF_LATTICE},
        ),
    }
    if any(node.operator == QUANTISE for node in graph.nodes) and checkpoint.grids:
        found["static_activations"] = True
    level = accuracy_level(graph)
    if level in LEVELS:
        found["accuracy_level"] = level
    return found | {key: graph.properties[key] for key in _DESCRIPTIVE if graph.properties.get(key)}


def accuracy_level(graph: Graph) -> int | None:
    """The level of most MatMulNBits of a graph, ``None`` if it has none."""
    levels = Counter(
        node.attributes.get("accuracy_level", 0) for node in graph.nodes if node.operator == _PRODUCTS
    )
    most = levels.most_common(1)
    return most[0][0] if most and isinstance(most[0][0], int) else None


def _scales(checkpoint: Checkpoint) -> Iterator[str]:
    for name, weight in checkpoint.weights.items():
        yield scales_name(expert_name(name, 0) if len(weight.shape) > 2 else name)


def _types(graph: Graph, checkpoint: Checkpoint) -> dict[str, str]:
    """The type of every weight that the graph has, by canonical name."""
    coded = {
        name: _type_of_codes(node)
        for node in graph.nodes
        if node.operator.startswith("com.microsoft.")
        for name in node.inputs[:2]
    }
    found = {}
    for key, weight in checkpoint.weights.items():
        name = stored_name(expert_name(key, 0) if len(weight.shape) > 2 else key)
        one = graph.initializers.get(name)
        if one is not None:
            found[key] = coded.get(name, one.dtype) if one.dtype == "UINT8" else one.dtype
    return found


def _type_of_codes(node: Node) -> str:
    """The type of the codes that a node reads, as this target calls it."""
    bits, block = node.attributes.get("bits", 4), node.attributes.get("block_size", 128)
    return type_name(bits, block) if isinstance(bits, int) and isinstance(block, int) else "UINT8"
