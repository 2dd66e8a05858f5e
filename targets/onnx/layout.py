"""Where every weight lies in ``model.onnx.data``.

Codes and scales are stretches of their own, since the graph's initializers name them apart. A stretch of
1 MiB or more begins at a page, so that a runtime can map it, a smaller one at a cache line (as
https://onnx.ai/onnx/repo-docs/ExternalData.html recommends).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from targets.onnx.storage import Storage
from targets.target import PlannedTensor

ALIGNMENT: Final = 64
PAGE: Final = 4096
_LARGE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A weight's bytes, and those of its scales if it is held as codes."""

    tensor: PlannedTensor
    #: Where they begin; row follows row.
    offset: int
    #: Bytes of each row.
    row_bytes: int
    #: Where those of its scales begin; ``None`` if it is not held as codes.
    scales_offset: int | None
    #: Bytes of the scales of each row; 0 if it is not held as codes.
    scales_row_bytes: int

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.tensor.shape[:-1])


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every weight lies in the file."""

    #: By canonical name, in the order of the file.
    places: Mapping[str, Place]
    #: The file's size in bytes.
    size: int


def lay_out(tensors: Sequence[PlannedTensor], storage: Storage) -> Layout:
    """Places for all ``tensors`` that come from a weight, in their order."""
    places: dict[str, Place] = {}
    end = 0
    for tensor in tensors:
        if tensor.weight is None:
            continue
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1] if tensor.shape else 1
        size, scales_size, _ = storage.held.row_parts(tensor.type, columns)
        offset = _aligned(end, rows * size)
        end = offset + rows * size
        scales_offset = _aligned(end, rows * scales_size) if scales_size else None
        if scales_offset is not None:
            end = scales_offset + rows * scales_size
        places[tensor.weight] = Place(tensor, offset, size, scales_offset, scales_size)
    return Layout(places, end)


def _aligned(offset: int, size: int) -> int:
    """The first place from ``offset`` on at which a stretch of ``size`` bytes may begin."""
    step = PAGE if size >= _LARGE else ALIGNMENT
    return -(-offset // step) * step
