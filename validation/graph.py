"""A sharp test of an artifact's graph and metadata: its runtime without rounding, on its own weights.

A runtime that rounds activations is off by more than most wrong graphs are: its noise hides a wrong epsilon,
a window that is too long, a RoPE base. So the runtime runs the artifact once more in a form in which it
rounds nothing, with the artifact's own metadata, graph and weights, and is compared with transformers in
float32 on the same weights. What is left between both is float arithmetic.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.amounts import amount
from converter.memory import free_memory
from validation.gates import GRAPH, Gate, judge_graph, not_run
from validation.metrics import LogitMetrics
from validation.runners import Runner
from validation.text import Tokens

#: Share of the memory that is free which the widened weights may take.
_SHARE = 0.9


def shortage(runner: Runner, artifact: Path, directory: Path) -> str | None:
    """One line on what the unrounded form of ``artifact`` lacks, room in ``directory`` or memory; ``None`` if
    it lacks nothing. Raises ``ValidationError`` for an artifact that cannot be read."""
    needed = runner.unrounded_bytes(artifact)
    free = shutil.disk_usage(directory).free
    if needed > free:
        return f"its weights as floats need {amount(needed)} of temporary files, {amount(free)} are free"
    memory = int(free_memory() * _SHARE)
    if needed > memory:
        return f"its weights as floats need {amount(needed)} of memory, {amount(memory)} are free"
    return None


def measured(metrics: LogitMetrics, tokens: Tokens, formed: str) -> dict[str, Any]:
    """The ``graph`` block of the report: divergences over all positions and beyond the window alone;
    ``formed`` says how the artifact was run."""
    beyond = metrics.kld[tokens.beyond]
    return {
        "form": formed,
        "positions": metrics.positions,
        "mean_kld": _finite(metrics.mean_kld),
        "max_kld": _finite(metrics.max_kld),
        "mean_kld_beyond_window": _finite(_mean(beyond)) if beyond.size else None,
    }


def judge(limit: float, metrics: LogitMetrics, tokens: Tokens) -> Gate:
    """The gate: the mean divergence over all positions, or over those beyond the window if it is larger
    there, so that neither hides the other."""
    beyond = metrics.kld[tokens.beyond]
    return judge_graph(limit, max(metrics.mean_kld, _mean(beyond)) if beyond.size else metrics.mean_kld)


def without(limits: Mapping[str, float], why: str, allowed: tuple[str, ...]) -> Gate:
    """The gate of an artifact whose unrounded form was not run."""
    return not_run(GRAPH, limits[GRAPH], why, allowed)


def _mean(klds: NDArray[np.float64]) -> float:
    return float(klds.mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
