"""Targets that store a part beside the text model: what a target does to bring another part.

Each has one part. Its text model is what ``gguf`` writes. Tensors of the part stand as float32 in a file of
their own, safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.parts import AUDIO, DRAFTER, TEXT, VISION
from converter.checkpoint.weight import Weight
from targets.gguf import target as gguf
from targets.target import Plan, PlannedFile, PlannedTensor, Stored, StoredTensor


@dataclass
class PartTarget:
    """``gguf`` with a second file; all that concerns the text model is left to it."""

    part: str
    #: The beginning of the names of the tensors that are stored.
    stored: str = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(gguf, name)

    @property
    def name(self) -> str:
        return f"with_{self.part}"

    @property
    def file(self) -> str:
        """Where the part's tensors are written."""
        return f"gguf/{self.part}.safetensors"

    def plan(self, checkpoint: Checkpoint, name: str, options: Mapping[str, object], *progress: Any) -> Plan:
        plan = gguf.plan(checkpoint, name, options, *progress)
        weights = checkpoint.parts.get(self.part, {}).values()
        tensors = [self.planned(weight) for weight in weights if weight.name.startswith(self.stored)]
        file = PlannedFile(self.file, bytes=sum(tensor.bytes for tensor in tensors), part=self.part)
        return replace(plan, target=self.name, files=(*plan.files, file), tensors=(*plan.tensors, *tensors))

    def planned(self, weight: Weight) -> PlannedTensor:
        return PlannedTensor(weight.name, weight.name, weight.shape, "F32", 4 * weight.size, True, self.part)

    def write(self, checkpoint: Checkpoint, plan: Plan, directory: Path, *progress: Any) -> Stored:
        written = gguf.write(checkpoint, of_text(plan), directory, *progress)
        weights = checkpoint.parts[self.part]
        values = {str(one.weight): whole(weights[str(one.weight)]) for one in plan.of_part(self.part)}
        save_file(values, directory / self.file)
        return written

    def describe(self, artifact: Path, checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
        values = load_file(artifact.parent / Path(self.file).name)
        return {
            **gguf.describe(artifact, checkpoint),
            **{name: stored(name, array) for name, array in values.items()},
        }

    def differences(self, artifact: Path, checkpoint: Checkpoint, plan: Plan, *progress: Any) -> Any:
        return gguf.differences(artifact, checkpoint, of_text(plan), *progress)

    def choices(self, plan: Plan) -> Any:
        return gguf.choices(of_text(plan))


def of_text(plan: Plan) -> Plan:
    """What ``gguf`` planned."""
    files = tuple(file for file in plan.files if file.part == TEXT)
    return replace(plan, target="gguf", files=files, tensors=plan.of_part(TEXT))


def whole(weight: Weight) -> NDArray[np.float32]:
    return weight.floats(0, weight.rows).reshape(weight.shape)


def stored(name: str, array: NDArray[np.float32]) -> StoredTensor:
    rows = array.reshape(-1, array.shape[-1] if array.shape else 1)
    return StoredTensor(name, name, "F32", array.shape, array.nbytes, partial(_rows, rows))


def _rows(rows: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    return rows[start:stop]


vision, audio, drafter = PartTarget(VISION), PartTarget(AUDIO), PartTarget(DRAFTER)
