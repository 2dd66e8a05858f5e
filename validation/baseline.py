"""Naive Q4_0 of the same checkpoint: what rounding to a new lattice costs, measured in the same run.

The baseline is the artifact that the same target writes when every weight on the lattice has the codes and
scales of llama.cpp's Q4_0 rounding (scale = extremum / -8, a float16) instead of the trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.weight import Lattice, LatticeRows, Weight
from converter.errors import UsageError, ValidationError
from converter.system.progress import StageProgress, no_progress
from targets.storing import BLOCK, rounded
from targets.target import find_target

NAMES = ("naive-q4_0",)
#: Options that ask for more files beside an artifact.
_COMPANIONS = ("keep_tflite", "npu", "android_assets")
#: The lattice of Q4_0.
_NAIVE = Lattice(4, BLOCK)


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
    ``progress`` counts bytes of the checkpoint. Raises ``ValidationError`` when no weight is on the lattice.
    """
    weights = {name: _naive(weight) for name, weight in checkpoint.weights.items()}
    if all(weight.lattice != _NAIVE for weight in weights.values()):
        raise ValidationError("no weight lies on a 4-bit lattice that a naive Q4_0 could be compared with")
    naive = replace(checkpoint, weights=weights)
    writer = find_target(target)
    own = {name: value for name, value in (options or {}).items() if name not in _COMPANIONS}
    plan = writer.plan(naive, "naive", own)
    writer.write(naive, plan, directory, lambda stage, done, total: progress(done, total))
    return directory / plan.artifacts[0]


def _naive(weight: Weight) -> Weight:
    """The same weight, rounded anew if it lies on the lattice."""
    if weight.lattice is None or weight.columns % BLOCK:
        return weight
    return replace(weight, lattice=_NAIVE, codes=_rounding(weight.floats))


def _rounding(floats: Callable[[int, int], NDArray[np.float32]]) -> Callable[[int, int], LatticeRows]:
    def codes(start: int, stop: int) -> LatticeRows:
        return rounded(floats(start, stop), _NAIVE.bits)

    return codes
