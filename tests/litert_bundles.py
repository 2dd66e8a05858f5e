"""A bundle for LiteRT-LM made from the parts of the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.checkpoint import open_checkpoint
from targets.litert.bundle import MODEL, Section, write_bundle
from targets.litert.filling import fill
from targets.litert.graph import export_graphs
from targets.litert.metadata import metadata_sections
from targets.litert.storage import has_negative_scales, planned_tensors


def write(
    model: Path,
    directory: Path,
    *,
    prefill_lengths: Sequence[int] = (128,),
    context_length: int = 4096,
    externalize_embedder: bool = False,
) -> Path:
    """Write the bundle of the checkpoint ``model`` below ``directory``; its path."""
    checkpoint = open_checkpoint(model)
    weights = checkpoint.weights
    negative = frozenset(name for name, weight in weights.items() if has_negative_scales(weight))
    planned = planned_tensors(weights, negative, checkpoint.architecture.tied_head)
    formats = {tensor.stored_as: tensor.format for tensor in planned}
    graphs = export_graphs(
        checkpoint,
        formats,
        prefill_lengths,
        context_length,
        directory,
        externalize_embedder=externalize_embedder,
    )

    def section(kind: str, graph: Path) -> Section:
        return Section(MODEL, lambda stream: fill(graph.read_bytes(), weights, formats, stream), kind)

    models = [section(kind, graph) for kind, graph in graphs.items()]
    path = directory / "model.litertlm"
    write_bundle(path, [*metadata_sections(checkpoint, context_length), *models])
    for graph in graphs.values():
        graph.unlink()
    return path
