"""The graph's initializers as stretches of ``model.onnx.data``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from targets.onnx.layout import Layout, Place
from targets.onnx.storage import expert_name, scales_name, stored_name

#: The data file's name as the graph gives it, beside the graph.
LOCATION: Final = "model.onnx.data"


@dataclass(frozen=True, slots=True)
class Stretch:
    """``length`` bytes from ``offset`` on."""

    offset: int
    length: int


def name_data(graph: ir.Graph, architecture: Architecture, layout: Layout) -> None:
    """Let every initializer of ``graph`` that has no data yet refer to its stretch of the data file.

    The codes of a tied head are those of the embedding: two initializers, one stretch. Raises ``ValueError``
    if graph and layout disagree.
    """
    stretches = all_stretches(architecture, layout)
    unused = set(dict(_stretches(architecture, layout)))
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            continue
        stretch, dtype, shape = stretches[name], value.dtype, value.shape
        assert dtype is not None
        assert isinstance(shape, ir.Shape)
        tensor = ir.ExternalTensor(
            LOCATION, stretch.offset, stretch.length, dtype, shape=shape, name=name, base_dir=""
        )
        if tensor.nbytes != stretch.length:
            raise ValueError(f"{name}: {tensor.nbytes} bytes in the graph, {stretch.length} in the data")
        value.const_value = tensor
        unused.discard(name)
    if unused:
        raise ValueError(f"not in the graph: {', '.join(sorted(unused))}")


def all_stretches(architecture: Architecture, layout: Layout) -> dict[str, Stretch]:
    """The stretch of every initializer that has its data in the file, by name."""
    stretches = dict(_stretches(architecture, layout))
    if architecture.tied_head:
        stretches[stored_name(HEAD)] = stretches[stored_name(EMBEDDING)]
    return stretches


def _stretches(architecture: Architecture, layout: Layout) -> Iterator[tuple[str, Stretch]]:
    for name, place in layout.places.items():
        if architecture.experts is None or not name.rpartition(".")[0].endswith(".experts"):
            yield from _parts(name, place, 0, place.rows)
            continue
        count = architecture.experts.count
        rows = place.rows // count
        for expert in range(count):
            yield from _parts(expert_name(name, expert), place, expert * rows, rows)


def _parts(name: str, place: Place, start: int, rows: int) -> Iterator[tuple[str, Stretch]]:
    """Codes (or numbers) and scales of ``rows`` rows from ``start`` on."""
    yield stored_name(name), Stretch(place.offset + start * place.row_bytes, rows * place.row_bytes)
    if place.scales_offset is not None:
        offset = place.scales_offset + start * place.scales_row_bytes
        yield scales_name(name), Stretch(offset, rows * place.scales_row_bytes)
