"""Graphs without weights that tests share: each is exported once a session, which takes a minute.

Processes that run tests side by side share one directory of them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from converter.checkpoint.opened import Checkpoint
from converter.system.progress import StageProgress, no_progress
from targets.litert.export.request import export_graphs

#: Most bytes of a checkpoint that is known by its contents; a larger one is known by its path.
_READ = 64 << 20


class Exports:
    """``targets.litert.export.request.export_graphs`` that keeps what it has made in ``directory``.

    The child process runs once for equal contents of a checkpoint, formats, lengths and options; ``count``
    says how often it did.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    @property
    def count(self) -> int:
        """Exports of this process so far."""
        return self._count

    def __call__(
        self,
        checkpoint: Checkpoint,
        formats: Mapping[str, str],
        prefill_lengths: Sequence[int],
        context_length: int,
        directory: Path,
        progress: StageProgress = no_progress,
        *,
        externalize_embedder: bool = False,
        two_rows: Collection[str] = (),
    ) -> Mapping[str, Path]:
        """See ``export_graphs``; the files in ``directory`` are copies, and progress is told again."""
        lengths = list(prefill_lengths)
        asked = (sorted(formats.items()), lengths, context_length, externalize_embedder, sorted(two_rows))
        key = hashlib.sha256(f"{_identity(checkpoint)} {asked}".encode()).hexdigest()
        kept = self._directory / key[:16]
        result = kept / "result.json"
        with FileLock(f"{kept}.lock"):
            if not result.exists():
                self._count += 1
                steps: list[tuple[int, int]] = []
                kept.mkdir(exist_ok=True)
                made = export_graphs(
                    checkpoint,
                    formats,
                    lengths,
                    context_length,
                    kept,
                    lambda *step: steps.append(step),
                    externalize_embedder=externalize_embedder,
                    two_rows=two_rows,
                )
                names = {kind: file.name for kind, file in made.items()}
                result.write_text(json.dumps({"files": names, "steps": steps}))
        document = json.loads(result.read_text())
        for step in document["steps"]:
            progress(*step)
        return {kind: Path(shutil.copy(kept / name, directory)) for kind, name in document["files"].items()}


def _identity(checkpoint: Checkpoint) -> str:
    files = sorted(checkpoint.files)
    if sum(file.stat().st_size for file in files) > _READ:
        return str(checkpoint.source.directory())
    digest = hashlib.sha256()
    for file in files:
        if file.name.endswith((".json", ".safetensors")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
