"""Options of a conversion to ONNX, inferred from the file that it left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from converter.checkpoint.opened import Checkpoint
from targets.onnx.accuracy import LEVELS
from targets.onnx.protobuf import Graph, read_graph
from targets.onnx.storage import (
    OFF_LATTICE,
    Storage,
    expert_name,
    scales_name,
    stored_name,
)
from targets.storing import is_matrix

_PRODUCTS: Final = "com.microsoft.MatMulNBits"
_NORM: Final = "norm.weight"
_DESCRIPTIVE: Final = ("license", "repo", "revision")


def inferred_options(artifact: Path, checkpoint: Checkpoint) -> dict[str, object]:
    """See ``targets.target.Target.infer_options``: ``onnx_dtype``, ``onnx_scales``, ``off_lattice``,
    ``accuracy_level``, and where they are told ``license``, ``repo`` and ``revision``. Raises
    ``CheckpointError`` for a damaged file."""
    graph = read_graph(artifact)
    norm = graph.initializers.get(stored_name(_NORM))
    half = norm is not None and norm.dtype == "FLOAT16"
    scales = {graph.initializers[name].dtype for name in _scales(checkpoint) if name in graph.initializers}
    found: dict[str, object] = {
        "onnx_dtype": "float16" if half else "float32",
        "onnx_scales": "f16" if half or scales == {"FLOAT16"} else "f32",
        "off_lattice": _off_lattice(graph, checkpoint),
    }
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


def _off_lattice(graph: Graph, checkpoint: Checkpoint) -> str:
    """The value of the option that explains the types of most matrices that lie on no lattice."""
    bits = {
        name: node.attributes.get("bits", 4)
        for node in graph.nodes
        if node.operator.startswith("com.microsoft.")
        for name in node.inputs[:2]
    }
    fitting: Counter[str] = Counter()
    for key, weight in checkpoint.weights.items():
        name = stored_name(expert_name(key, 0) if len(weight.shape) > 2 else key)
        one = graph.initializers.get(name)
        if one is not None and is_matrix(weight) and Storage().held.holding(weight) is None:
            type_name = f"INT{bits.get(name)}" if one.dtype == "UINT8" else one.dtype
            fitting.update(
                option
                for option in OFF_LATTICE
                if Storage(off_lattice=option).held.type_of(weight) == type_name
            )
    return max(OFF_LATTICE, key=lambda option: fitting[option])  # the default is the first, and wins a tie
