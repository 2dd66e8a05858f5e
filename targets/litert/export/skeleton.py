"""What an export needs of a checkpoint: its shapes, and the numbers of its vectors.

The child that exports has no use for lattices, nor for the compiler that reads them, which takes 70 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.canonical_names import HEAD
from converter.checkpoint.weight import Weight

if TYPE_CHECKING:
    from converter.checkpoint.opened import Checkpoint


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A checkpoint whose matrices have shapes alone."""

    #: Where transformers finds its configuration.
    directory: Path
    architecture: Architecture
    #: ``floats`` of its vectors gives their values.
    weights: Mapping[str, Weight]


def write_skeleton(checkpoint: Checkpoint, vectors: Path) -> dict[str, object]:
    """What ``read_skeleton`` takes, as JSON holds it; the vectors' values go to the file ``vectors``, as
    float32, one behind the other."""
    weights = checkpoint.weights
    with vectors.open("xb") as stream:
        for weight in weights.values():
            if len(weight.shape) < 2:
                stream.write(np.ascontiguousarray(weight.floats(0, weight.rows), "<f4").tobytes())
    return {
        "checkpoint": str(checkpoint.source.directory().absolute()),
        "config": dict(checkpoint.config),
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "vectors": str(vectors.absolute()),
    }


def read_skeleton(written: Mapping[str, Any]) -> Skeleton:
    """The checkpoint that was described."""
    values = np.fromfile(written["vectors"], "<f4")
    weights, start = {}, 0
    for name, shape in written["shapes"].items():
        own = values[:0]
        if len(shape) < 2:
            own, start = values[start : start + int(np.prod(shape))], start + int(np.prod(shape))
        weights[name] = _weight(name, tuple(shape), own)
    architecture = read_architecture(written["config"])
    if architecture.tied_head and HEAD in weights:  # a stored head that differs unties them
        tensors = {**architecture.tensors, HEAD: weights[HEAD].shape}
        architecture = replace(architecture, tied_head=False, tensors=tensors)
    return Skeleton(Path(written["checkpoint"]), architecture, weights)


def _weight(name: str, shape: tuple[int, ...], values: NDArray[np.float32]) -> Weight:
    return Weight(name, name, shape, "F32", lambda start, stop: values.reshape(1, -1)[start:stop])
