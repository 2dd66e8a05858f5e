"""Naive Q4_0 of the same checkpoint: what rounding to a new lattice costs, measured in the same run.

The baseline is an artifact that the same target writes. In it every weight on the lattice has the codes and
scales of llama.cpp's Q4_0 rounding (scale = extremum / -8, a float16) instead of the trained ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from converter.checkpoint.opened import Checkpoint
from converter.errors import UsageError, ValidationError
from converter.system.progress import StageProgress, no_progress
from targets.gguf.storage import Q4_0
from targets.storing import naively_rounded
from targets.target import find_target

NAMES = ("naive-q4_0",)


def check_baseline(name: str | None) -> None:
    """Raise ``UsageError`` for a baseline that does not exist."""
    if name is not None and name not in NAMES:
        raise UsageError(f"unknown baseline {name!r}; known: {', '.join(NAMES)}")


def write_naive_q4_0(
    target: str,
    checkpoint: Checkpoint,
    directory: Path,
    options: Mapping[str, object] | None = None,
    progress: StageProgress = no_progress,
) -> Path:
    """Write the baseline of a target's artifact below ``directory`` and return its first file.

    ``options`` are the artifact's own (``Plan.options``), so that nothing but the lattice differs.
    ``progress`` counts bytes of the checkpoint. Raises ``ValidationError`` when no weight lies on a lattice.
    """
    weights = {name: naively_rounded(weight, Q4_0) for name, weight in checkpoint.weights.items()}
    if all(weights[name] is weight for name, weight in checkpoint.weights.items()):
        raise ValidationError("no weight lies on a lattice that a naive Q4_0 could be compared with")
    naive = replace(checkpoint, weights=weights)
    writer = find_target(target)
    beside = {option.name for option in writer.options if option.extra_files or option.outside}
    own = {name: value for name, value in (options or {}).items() if name not in beside}
    plan = writer.plan(naive, "naive", own)
    writer.write(naive, plan, directory, lambda stage, done, total: progress(done, total))
    return directory / plan.artifacts[0]
