"""Graphs without weights: litert-torch in a child process, whose memory and chatter stay there.

A graph is a ``.tflite`` of a few megabytes with the signatures ``prefill_N`` and ``decode``. Each matrix of
the checkpoint is an input of type float32, named as the weight, of which the writer makes constants.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from converter.filenames import CONFIG
from converter.system.progress import StageProgress, no_progress
from targets.litert.export.child import ask
from targets.litert.export.skeleton import write_skeleton

if TYPE_CHECKING:
    from converter.checkpoint.architecture import Architecture
    from converter.checkpoint.opened import Checkpoint

#: Steps of progress for each graph, of which the first takes the longest.
STEPS: Final = 3

_MODULE: Final = "targets.litert.export.process"
_VECTORS: Final = ".vectors"
_MIB: Final = 1 << 20
_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")
#: Exports whose graphs are kept, of a few megabytes each.
_KEPT: Final = 2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a graph is asked to be, apart from the model."""

    #: In tokens: those of the signatures ``prefill_N``.
    prefill_lengths: Sequence[int]
    #: In tokens: the caches'.
    context_length: int
    #: Embeddings are graphs of their own.
    externalize_embedder: bool = False

    def listed(self) -> dict[str, object]:
        """The same as JSON holds it."""
        return {
            "prefill_lengths": list(self.prefill_lengths),
            "context_length": self.context_length,
            "externalize_embedder": self.externalize_embedder,
        }


def export_graphs(
    checkpoint: Checkpoint, wanted: Wanted, directory: Path, progress: StageProgress = no_progress
) -> Mapping[str, Path]:
    """Write the graphs of a text model below ``directory``; paths by LiteRT-LM's name of the kind.

    Every matrix is an input by its canonical name, a tied head that of the embedding. Of a tensor of experts
    ``[E, N, K]`` the input is ``[E * N, K]``, and ``[N, E * K]`` for ``down_proj``, the experts side by side.

    Equal arguments give equal bytes. Raises ``TargetError`` of one line, with the child's log as a note.
    """
    vectors = directory / _VECTORS
    try:
        request = {
            **write_skeleton(checkpoint, vectors),
            **wanted.listed(),
            "directory": str(directory.absolute()),
        }
        files = ask(_MODULE, request, progress, work="the graph's export")
    finally:
        vectors.unlink(missing_ok=True)
    return {kind: directory / name for kind, name in files.items()}


class KeptGraphs:
    """The graphs of the last exports, which a conversion needs to write, to compare and for its baseline.

    A graph depends on shapes and vectors, on ``config.json``, and on what it was asked for; not on matrices.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Mapping[str, bytes]] = {}

    def get(
        self, key: str, export: Callable[[Path], Mapping[str, Path]], scratch: Path
    ) -> Mapping[str, bytes]:
        """Graphs by kind; ``export(directory)`` writes them below ``scratch`` if none are kept for
        ``key``."""
        _LOG.info("graphs %s: %s", key[:12], "kept" if key in self._kept else "to be exported")
        if key not in self._kept:
            with tempfile.TemporaryDirectory(prefix=".graphs-", dir=scratch) as name:
                graphs = {kind: file.read_bytes() for kind, file in export(Path(name)).items()}
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = graphs
        return self._kept[key]


def graph_key(checkpoint: Checkpoint, wanted: Wanted) -> str:
    """What equal exports have in common; the arguments are those of ``export_graphs``."""
    digest = hashlib.sha256(checkpoint.documents.content(CONFIG))
    for name, weight in checkpoint.weights.items():
        digest.update(f"{name} {weight.shape}".encode())
        if len(weight.shape) < 2:
            digest.update(np.ascontiguousarray(weight.floats(0, weight.rows), "<f4").tobytes())
    digest.update(f"{wanted.listed()} {checkpoint.architecture}".encode())
    return digest.hexdigest()


def needed_memory(architecture: Architecture, prefill_lengths: Sequence[int]) -> int:
    """Bytes that the child holds at most: those of imports, and 6 MiB for every layer and signature. That is
    a little more than was measured (litert-torch 0.10.0; 6, 10 and 35 layers). The bytes do not grow with the
    parameters."""
    return (850 + 6 * len(architecture.layers) * (len(prefill_lengths) + 1)) * _MIB
