"""What the static grids of activations do, to which training rounded what goes through a model's modules.

The reference that an artifact is judged by is without them, as a runtime is that does not apply them. With
them it shows what they do to the model, and how far the artifact is from the model as it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from validation.logits import map_logits
from validation.reference.source import gridded_modules
from validation.report.entries import number
from validation.running import Bench, compare_logits


def grids_entry(bench: Bench, output: Path) -> dict[str, dict[str, Any]]:
    """The ``activation_grids`` block of the report, under its key; nothing for a checkpoint without grids.
    ``output`` is the file with the artifact's logits, float32 ``[positions, vocabulary]``."""
    if bench.gridded is None:
        return {}
    effect = compare_logits(bench, bench.gridded, bench.reference)
    artifact = compare_logits(bench, bench.gridded, map_logits(output, bench.tokens.positions))
    block = {
        "modules": gridded_modules(bench.checkpoint),
        "applied": False,
        "mean_kld": number(effect.mean_kld),
        "max_kld": number(effect.max_kld),
        "same_top_p": number(effect.same_top_p),
        "ppl": number(effect.ppl_reference),
        "mean_kld_artifact": number(artifact.mean_kld),
        "same_top_p_artifact": number(artifact.same_top_p),
    }
    return {"activation_grids": block}
