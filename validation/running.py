"""What artifacts are measured with, and one run of one artifact in its runtime."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.errors import ValidationError
from converter.system.progress import Progress, StageProgress, stage_of
from targets.target import Plan, Target
from validation.logits import next_tokens
from validation.metrics import LogitMetrics, compare
from validation.room import Room
from validation.runners import AS_IT_IS, Runner, Runtime
from validation.settings import Prepared, Settings
from validation.text import Tokens

_LOG: Final = logging.getLogger(f"qatconvert.{__name__}")
#: What a file of this room is not named with.
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class Bench:
    """What an artifact and its baseline are measured with, the same for both."""

    #: The checkpoint with settings and token ids.
    prepared: Prepared
    #: What wrote the artifact.
    target: Target
    #: The target's runtime.
    runner: Runner
    #: The reference's logits at the positions of ``tokens``, float32 ``[positions, vocabulary]``.
    reference: NDArray[np.float32]
    #: Where temporary files lie.
    scratch: Path
    progress: Progress
    #: Logits of the reference with the checkpoint's static grids of activations, of the same shape as
    #: ``reference``, which is without them. ``None`` where there are no grids. What an artifact is judged by
    #: says ``reference_for``.
    gridded: NDArray[np.float32] | None = None
    #: What the grids do by themselves: ``reference`` beside ``gridded``.
    grids_alone: LogitMetrics | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """What the artifact was made of."""
        return self.prepared.checkpoint

    @property
    def settings(self) -> Settings:
        """How it is proven."""
        return self.prepared.settings

    @property
    def tokens(self) -> Tokens:
        """Sequences of token ids, and the positions of them that are compared."""
        return self.prepared.tokens

    @property
    def vocabulary(self) -> int:
        """How many logits there are at a position."""
        return int(self.reference.shape[1])

    def reference_for(self, plan: Plan) -> NDArray[np.float32]:
        """The logits that an artifact is judged by: those with grids if it applies them. Raises
        ``ValidationError`` where the reference cannot."""
        if not plan.applies_grids:
            return self.reference
        if self.gridded is None:
            raise ValidationError(
                f"{self.target.name}: the artifact rounds activations to static grids, and transformers has "
                f"none for {self.checkpoint.form.name} to compare it with: convert without them"
            )
        return self.gridded

    @property
    def room(self) -> Room:
        """What is left for temporary files and in memory."""
        return self.settings.room(self.scratch)

    def stage(self, name: str) -> StageProgress:
        """The progress of one stage."""
        return stage_of(self.progress, name)

    def file(self, stage: str) -> Path:
        """Where the logits of a stage go."""
        return self.scratch / f"{_UNUSUAL.sub('-', stage)}.npy"

    def directory(self) -> tempfile.TemporaryDirectory[str]:
        """An empty directory that is gone when its context ends."""
        return tempfile.TemporaryDirectory(dir=self.scratch)


def run(
    bench: Bench,
    artifact: Path,
    stage: str,
    choice: Mapping[str, object] = AS_IT_IS,
    tokens: Tokens | None = None,
) -> tuple[Path, Runtime]:
    """The file with the runtime's logits of ``tokens`` (default: all), float32 ``[positions, vocabulary]``,
    and the runtime. Raises ``ValidationError`` for an artifact that it does not run as ``choice``."""
    tokens = tokens or bench.tokens
    output = bench.file(stage)
    runtime = bench.runner.logits(
        artifact,
        tokens.sequences,
        bench.vocabulary,
        output,
        bench.stage(stage),
        choice=choice,
        firsts=tokens.firsts,
    )
    _LOG.info("%s: run by %s %s as %s", artifact, runtime.name, runtime.version, dict(choice) or "it is")
    return output, runtime


def compare_logits(
    bench: Bench,
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    tokens: Tokens | None = None,
) -> LogitMetrics:
    """How far ``logits`` are from ``reference``, both float32 ``[positions, vocabulary]`` at the positions of
    ``tokens`` (default: all)."""
    tokens = tokens or bench.tokens
    following = next_tokens(tokens.sequences, tokens.firsts)
    return compare(reference, logits, following, bench.stage(f"comparing logits ({bench.target.name})"))
