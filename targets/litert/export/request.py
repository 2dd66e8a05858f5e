"""Graphs without weights: litert-torch in a child process, whose memory and chatter stay there.

A graph is a ``.tflite`` of a few megabytes with the signatures ``prefill_N`` and ``decode``. Each matrix of
the checkpoint is an input of type float32, named as the weight, of which the writer makes constants.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
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


def export_graphs(
    checkpoint: Checkpoint,
    types: Mapping[str, str],
    prefill_lengths: Sequence[int],
    context_length: int,
    directory: Path,
    progress: StageProgress = no_progress,
    *,
    externalize_embedder: bool = False,
    two_rows: Collection[str] = (),
) -> Mapping[str, Path]:
    """Write the graphs of a text model below ``directory``; paths by LiteRT-LM's name of the kind.

    ``types`` are the plan's, by canonical name. A matrix of ``INT4+sums`` gets a second input,
    ``<name>|sums`` (float32 ``[rows, blocks]``). A tied head becomes an input of its own if
    ``lm_head.weight`` has a type. Of a tensor of experts ``[E, N, K]`` the input is ``[E * N, K]``, and
    ``[N, E * K]`` for ``down_proj``, the experts side by side. ``prefill_lengths`` and ``context_length`` are
    in tokens. With ``externalize_embedder`` the embeddings are graphs of their own. The products of modules
    named in ``two_rows`` (``down_proj``) split their input by magnitude.

    Equal arguments give equal bytes. Raises ``TargetError`` of one line, with the child's log as a note.
    """
    from targets.litert.storage import SUMS  # what the child does not import

    vectors = directory / _VECTORS
    try:
        request = {
            **write_skeleton(checkpoint, vectors),
            "types": dict(types),
            "prefill_lengths": list(prefill_lengths),
            "context_length": context_length,
            "directory": str(directory.absolute()),
            "externalize_embedder": externalize_embedder,
            "two_rows": sorted(two_rows),
            "block": SUMS.block,
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


def graph_key(
    checkpoint: Checkpoint,
    types: Mapping[str, str],
    prefill_lengths: Sequence[int],
    context_length: int,
    externalize_embedder: bool,
    two_rows: Collection[str],
) -> str:
    """What equal exports have in common; the arguments are those of ``export_graphs``."""
    digest = hashlib.sha256(checkpoint.documents.content(CONFIG))
    for name, weight in checkpoint.weights.items():
        digest.update(f"{name} {weight.shape}".encode())
        if len(weight.shape) < 2:
            digest.update(np.ascontiguousarray(weight.floats(0, weight.rows), "<f4").tobytes())
    asked = (
        sorted(types.items()),
        list(prefill_lengths),
        context_length,
        externalize_embedder,
        sorted(two_rows),
    )
    digest.update(f"{asked} {checkpoint.architecture}".encode())
    return digest.hexdigest()


def needed_memory(architecture: Architecture, prefill_lengths: Sequence[int]) -> int:
    """Bytes that the child holds at most: those of imports, and 6 MiB for every layer and signature. That is
    a little more than was measured (litert-torch 0.10.0; 6, 10 and 35 layers). The bytes do not grow with the
    parameters."""
    return (850 + 6 * len(architecture.layers) * (len(prefill_lengths) + 1)) * _MIB
