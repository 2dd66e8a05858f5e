"""What every stored form does with the tensors of a module."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.lattice import bf16_floats
from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.weight import Scales, Weight
from converter.errors import CheckpointError
from converter.system.untrusted import shown

#: Dtypes of numbers that are read as they are.
NUMBERS: Final = ("BF16", "F16", "F32")
#: Most scales of a module: more than any model has channels.
_MOST_SCALES: Final = 1 << 20
_COMPARED_BYTES: Final = 1 << 22

#: Stored tensors by role, a word that the form chooses.
Tensors = Mapping[str, SourceTensor]


class Head(Enum):
    """What a stored output head is where the configuration ties it to the embedding."""

    #: Equal to the embedding, and left out for that reason.
    EQUAL = "equal to the embedding it is tied to"
    #: A head of its own, which unties the model.
    OWN = "own"
    #: Head and embedding, where it is stored alone.
    BOTH = "both"


def settle_head(head: Tensors, embedding: Tensors | None) -> Head:
    """What transformers 5.23 makes of a stored head on load. One of the same bits as the embedding is the
    embedding, any other one is a head of its own. Tensors are compared as they are stored."""
    if embedding is None:
        return Head.BOTH
    alike = head.keys() == embedding.keys()
    return Head.EQUAL if alike and all(same_bits(head[role], embedding[role]) for role in head) else Head.OWN


def same_bits(one: SourceTensor, other: SourceTensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for start in range(0, one.bytes, _COMPARED_BYTES):
        stop = min(start + _COMPARED_BYTES, one.bytes)
        if not np.array_equal(one.read_raw(start, stop), other.read_raw(start, stop)):
            return False
    return True


def named_scales(module: str, tensors: Tensors) -> Scales:
    """Scales whose roles are the fields of ``Scales``; raises as ``read_scale`` does."""
    return Scales(**{role: read_scale(tensor) for role, tensor in tensors.items()})


def shape_of_one(tensors: Tensors) -> tuple[int, ...]:
    """The shape of a weight that is one tensor. Raises ``CheckpointError`` for several."""
    one, *others = tensors.values()
    if others:
        raise CheckpointError(f"{one.where} and {shown(others[0].name)} have no shape of one weight")
    return one.shape


def read_scale(tensor: SourceTensor) -> NDArray[np.float32]:
    """The numbers of a small tensor as float32 ``[values]``.

    Raises ``CheckpointError`` for another dtype, for too many values, and for one that is infinite or not a
    number."""
    check_dtype(tensor)
    if tensor.rows * tensor.columns > _MOST_SCALES:
        raise CheckpointError(f"{tensor.where} has {tensor.rows * tensor.columns} scales, which are too many")
    values = as_floats(tensor.read_rows(0, tensor.rows)).reshape(-1)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{tensor.where} has a value that is infinite or not a number")
    return values


def check_dtype(tensor: SourceTensor) -> None:
    """Raise ``CheckpointError`` for a tensor that does not hold numbers."""
    if tensor.dtype not in NUMBERS:
        raise CheckpointError(
            f"{tensor.where} has dtype {tensor.dtype}, expected one of {', '.join(NUMBERS)}"
        )


def number_weight(tensor: SourceTensor) -> Weight:
    """The weight of a tensor of another part than the text model, by its name in the checkpoint. It has the
    numbers as they are stored, infinite ones too (bounds of what is clipped), and lies on no lattice."""

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return as_floats(tensor.read_rows(start, stop))

    return Weight(tensor.name, tensor.name, tensor.shape, tensor.dtype, floats)


def as_floats(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """Numbers as stored (uint16 for bfloat16 bits, float16 or float32) as float32 of the same shape."""
    if values.dtype == np.uint16:
        return bf16_floats(values.view(np.uint16))
    return values.astype(np.float32, copy=False)
