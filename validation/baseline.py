"""Naive Q4_0 of the same checkpoint: what rounding to a new lattice costs, measured in the same run.

The baseline is a copy of the written GGUF in which every Q4_0 tensor holds the checkpoint's floats as gguf-py
quantises them, with scale = extremum / -8. All else is the same file, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import UsageError, ValidationError
from converter.weight import Weight
from targets.gguf.reading import split_files
from targets.plan import StoredTensor
from validation.worker import Progress

NAMES = ("naive-q4_0",)


def check_baseline(name: str | None) -> None:
    """Raise ``UsageError`` for a baseline that does not exist."""
    if name is not None and name not in NAMES:
        raise UsageError(f"unknown baseline {name!r}; known: {', '.join(NAMES)}")


def applies(target: str) -> bool:
    """Whether a target's artifacts are files that a baseline can be made of."""
    return target == "gguf"


def write_naive_q4_0(
    artifact: Path,
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    directory: Path,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write the baseline of ``artifact`` (the first file of a split model) below ``directory``.

    ``stored`` is what the artifact holds; ``progress`` counts values. Returns the new first file. Raises
    ``ValidationError`` when the artifact has no Q4_0 tensor.
    """
    weights = {
        tensor.stored_as: checkpoint.weights[name]
        for name, tensor in stored.items()
        if tensor.format == "Q4_0" and name in checkpoint.weights
    }
    if not weights:
        raise ValidationError(f"{artifact.name}: has no Q4_0 tensor that a naive Q4_0 could be compared with")
    total, done = sum(weight.size for weight in weights.values()), 0
    files = split_files(artifact)
    for file in files:
        copy = directory / file.name
        shutil.copyfile(file, copy)
        with copy.open("r+b") as stream:
            for tensor in gguf.GGUFReader(file).tensors:
                if tensor.name in weights and tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0:
                    done = _requantise(stream, tensor, weights[tensor.name], done, total, progress)
    return directory / files[0].name


def _requantise(stream: Any, tensor: Any, weight: Weight, done: int, total: int, progress: Progress) -> int:
    """Overwrite one tensor's data by row ranges; it keeps its place and size."""
    stream.seek(int(tensor.data_offset))
    written = 0
    for start, stop in weight.row_ranges():
        rows = np.ascontiguousarray(weight.floats(start, stop), np.float32)
        packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0)
        written += stream.write(packed.tobytes())
        done += rows.size
        progress(done, total)
    if written != int(tensor.n_bytes):
        raise ValidationError(
            f"{tensor.name}: {tensor.n_bytes} bytes in the artifact, {written} in the baseline"
        )
    return done
