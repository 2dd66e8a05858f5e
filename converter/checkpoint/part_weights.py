"""The weights of a part beside the text model: numbers, and what the stored form makes of packed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from converter.checkpoint.safetensors import SourceTensor
from converter.checkpoint.stored import Layout, Tensors, whole_way
from converter.checkpoint.stored.modules import NUMBERS, number_weight
from converter.checkpoint.weight import Weight
from converter.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class PartWeights:
    """The weights of a part."""

    #: By name in the checkpoint.
    weights: Mapping[str, Weight]
    #: The name of the weight that each packed tensor belongs to.
    belongs: Mapping[str, str]


def part_weights(tensors: Iterable[SourceTensor], layout: Layout) -> PartWeights:
    """The weights that a part's stored tensors make.

    A packed weight has codes and scales as the form reads them. Every other tensor of numbers is a weight by
    itself. What is neither makes no weight: a text model, which needs no part, is read all the same.
    """
    together: dict[str, dict[str, SourceTensor]] = {}
    for tensor in tensors:
        together.setdefault(layout.weight_of(tensor.name), {})[tensor.name] = tensor
    weights: dict[str, Weight] = {}
    belongs: dict[str, str] = {}
    for name, own in together.items():
        way = _packed(name, own, layout)
        weight = _made(name, way, layout) if way else None
        if weight is not None:
            weights[name] = weight
            belongs |= {tensor.name: name for tensor in way.values()}
        for tensor in own.values():
            if tensor.name not in belongs and tensor.dtype in NUMBERS:
                weights[tensor.name] = number_weight(tensor)
    return PartWeights(weights, belongs)


def _packed(name: str, own: Mapping[str, SourceTensor], layout: Layout) -> Tensors:
    """Those of the tensors, by role, that make the weight of a name and are not numbers alone; empty where no
    way of storing it is whole, or two are."""
    try:
        way = whole_way(name, name, own, layout) or {}
    except CheckpointError:
        return {}
    found = {role: own[one] for role, one in way.items()}
    return found if any(tensor.dtype not in NUMBERS for tensor in found.values()) else {}


def _made(name: str, way: Tensors, layout: Layout) -> Weight | None:
    """The weight that the form makes of packed tensors, ``None`` of such as do not fit."""
    try:
        return layout.weight(name, layout.shape(way), way)
    except CheckpointError:
        return None
