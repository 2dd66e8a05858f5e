"""What the static grids of activations do, to which training rounded what goes through a model's modules.

An artifact that applies them is judged by a reference that does so too, any other by one without them. Both
together show what they do to the model, and how far the artifact is from the model as it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from targets.target import Plan
from validation.logits import map_logits
from validation.reference.source import gridded_modules
from validation.report.entries import number
from validation.running import Bench, compare_logits


def grids_entry(bench: Bench, plan: Plan, output: Path) -> dict[str, dict[str, Any]]:
    """The ``activation_grids`` block of the report, under its key; nothing for a checkpoint without grids.
    ``output`` is the file with the logits of the artifact, which is as ``plan`` says, float32
    ``[positions, vocabulary]``."""
    if bench.gridded is None or (effect := bench.grids_alone) is None:
        return {}
    artifact = compare_logits(bench, bench.gridded, map_logits(output, bench.tokens.positions))
    block = {
        "modules": gridded_modules(bench.checkpoint),
        "applied": plan.applies_grids,
        "mean_kld": number(effect.mean_kld),
        "max_kld": number(effect.max_kld),
        "same_top_p": number(effect.same_top_p),
        "ppl": number(effect.ppl_reference),
        "mean_kld_artifact": number(artifact.mean_kld),
        "same_top_p_artifact": number(artifact.same_top_p),
    }
    return {"activation_grids": block}
