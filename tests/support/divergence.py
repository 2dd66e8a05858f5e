"""How far an artifact's logits are from those of transformers on the checkpoint that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.opened import Checkpoint
from validation.reference.model import write_logits
from validation.reference.source import reference_model

GEMMA4_ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "factor": 4.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
#: What a configuration may say beside a generated checkpoint's own: variant and keys of the text part.
OTHER_SETTINGS = {
    "window": ("31b", {"sliding_window": 16}),
    "no softcap": ("31b", {"final_logit_softcapping": None}),
    "gemma4 rope": ("31b", {"rope_parameters": GEMMA4_ROPE}),
    "gemma3": ("gemma3-text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 16}),
}


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean over positions of KL(reference || logits), in nats."""

    def log_softmax(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    expected, found = log_softmax(reference), log_softmax(logits)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def divergence_from_transformers(checkpoint: Checkpoint, artifact: Path, runner: Any, scratch: Path) -> float:
    """Mean KLD of 151 random tokens, more than two sliding windows of the generated checkpoints."""
    random = np.random.default_rng(5)
    ids = [[2, *random.integers(300, 1200, 150).tolist()]]
    request = {
        "model": str(checkpoint.source.directory()),
        "left_out": [one.name for one in checkpoint.left_out],
        "untied": reference_model(checkpoint, scratch).untied,
        "grids": False,
        "sequences": ids,
        "firsts": [0],
        "output": str(scratch / "reference.npy"),
        "dtype": "float32",
        "max_memory": None,
        "batch_bytes": None,
        "float16_gelu": False,
        "gelu_noise": False,
        "scratch": str(scratch),
    }
    write_logits(request, lambda done, total: None)
    output = scratch / "logits.npy"
    runner.logits(artifact, ids, checkpoint.architecture.vocabulary, output, lambda done, total: None)
    return divergence(np.load(scratch / "reference.npy"), np.load(output))
