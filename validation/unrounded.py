"""A sharp test of an artifact's graph and metadata: its runtime without rounding, on its own weights.

A runtime that rounds activations is off by more than most wrong graphs are: its noise hides a wrong epsilon,
a window that is too long, a RoPE base. So the runtime runs the artifact once more in a form in which it
rounds nothing, with the artifact's own metadata, graph and weights, and is compared with transformers in
float32 on the same weights. What is left between both is float arithmetic.

A model for which there is no room is run as an excerpt, its first layers of every kind. What is wrong in a
layer that is left out does not show then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.excerpt import Excerpt
from converter.system.amounts import amount
from validation.gates import Gate, judge_graph, not_run
from validation.limits import GRAPH
from validation.metrics import LogitMetrics
from validation.room import Room
from validation.runners import Runner
from validation.text import Tokens

#: How much more than a shared rounding itself the graph may be off, and the most that this may allow.
_TIMES: Final = 4
_MOST: Final = 1e-4
#: Bytes of weights that a stepwise runtime reads for all positions together, some 30 s on two processors, and
#: the fewest positions whatever it takes.
_READ: Final = 200_000_000_000
_FEWEST: Final = 64


def shortage(runner: Runner, artifact: Path, room: Room, excerpt: Excerpt | None = None) -> str | None:
    """One line on what the unrounded form of ``artifact``, or of an excerpt, lacks in ``room``; ``None`` if
    it lacks nothing. Raises ``ValidationError`` for an artifact that cannot be read or cut."""
    needed = runner.unrounded_bytes(artifact, excerpt)
    held = needed * runner.weights_held
    for size, free, what in ((needed, room.disk, "temporary files"), (held, room.memory, "memory")):
        if size > free:
            return f"the run without rounding needs {amount(size)} of {what}, it may take {amount(free)}"
    return None


def compared(runner: Runner, artifact: Path, tokens: Tokens, excerpt: Excerpt | None = None) -> Tokens:
    """The positions at which the unrounded form of ``artifact``, or of an excerpt, is compared: all, or as
    many as a runtime that reads all weights for each has time for. What is wrong in a graph shows at every
    position. Raises ``ValidationError`` as ``shortage`` does."""
    size = runner.unrounded_bytes(artifact, excerpt) if runner.stepwise else 0
    return tokens.fewer(max(_FEWEST, _READ // max(1, size)))


def limit_with_noise(limit: float, noise: float) -> float:
    """The limit where a rounding that the runtime and the reference share costs this model ``noise``.

    Both do the same, but not of the same numbers: one whose last bit differs is now and then rounded to
    another neighbour. In a shallow model that is rare; through many layers it adds up to as much as the
    rounding itself."""
    return max(limit, min(limit + _TIMES * noise, _MOST))


def measured(
    metrics: LogitMetrics, tokens: Tokens, formed: str, noise: float, excerpt: Excerpt | None = None
) -> dict[str, Any]:
    """The ``graph`` block of the report: divergences over all positions and beyond the window alone;
    ``formed`` says how the artifact was run, ``noise`` what a rounding that both share costs, ``excerpt``
    which of its layers were run, if not all."""
    beyond = metrics.kld[tokens.beyond]
    return {
        "form": formed,
        **({} if excerpt is None else {"layers": list(excerpt.layers), "layers_of": excerpt.of}),
        "positions": metrics.positions,
        "mean_kld": _finite(metrics.mean_kld),
        "max_kld": _finite(metrics.max_kld),
        "mean_kld_beyond_window": _finite(_mean(beyond)) if beyond.size else None,
        **({"mean_kld_of_float16_gelu": _finite(noise)} if noise else {}),
    }


def judge(limit: float, metrics: LogitMetrics, tokens: Tokens, note: str = "") -> Gate:
    """The gate: the mean divergence over all positions, or over those beyond the window if it is larger
    there, so that neither hides the other. ``note`` goes before the gate's own."""
    beyond = metrics.kld[tokens.beyond]
    value = max(metrics.mean_kld, _mean(beyond)) if beyond.size else metrics.mean_kld
    gate = judge_graph(limit, value)
    return replace(gate, note="; ".join(filter(None, (note, gate.note))))


def without(limits: Mapping[str, float], why: str, allowed: tuple[str, ...]) -> Gate:
    """The gate of an artifact whose unrounded form was not run."""
    return not_run(GRAPH, limits[GRAPH], why, allowed)


def _mean(klds: NDArray[np.float64]) -> float:
    return float(klds.mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
