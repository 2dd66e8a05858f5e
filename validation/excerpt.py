"""An excerpt of a checkpoint and of an artifact's tensors, as ``converter.checkpoint.excerpt`` cuts
models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from converter.checkpoint.architecture import Architecture, read_architecture
from converter.checkpoint.canonical_names import HEAD
from converter.checkpoint.excerpt import Excerpt, Rows
from converter.checkpoint.opened import Checkpoint
from converter.errors import ValidationError
from targets.target import StoredTensor


def cut_checkpoint(checkpoint: Checkpoint, excerpt: Excerpt) -> Checkpoint:
    """The checkpoint of an excerpt: its configuration, architecture and weights, under the names that they
    have there.

    Raises ``CheckpointError`` if its configuration is none, ``ValidationError`` for a tensor that cannot be
    cut between layers."""
    config = excerpt.config(checkpoint.config, checkpoint.architecture)
    architecture = _headed(read_architecture(config), checkpoint.architecture)
    weights = {}
    for name, shape in architecture.tensors.items():
        weight = checkpoint.weights[_source(name, excerpt)]
        floats = _cut(weight.floats, weight.name, weight.shape, shape, excerpt)
        weights[name] = replace(weight, name=name, shape=shape, floats=floats, lattice=None, codes=None)
    return replace(checkpoint, config=config, architecture=architecture, weights=weights)


def cut_tensors(
    stored: Mapping[str, StoredTensor], cut: Checkpoint, excerpt: Excerpt
) -> dict[str, StoredTensor]:
    """An artifact's tensors as those of the excerpt ``cut``, by the names there.

    Raises ``ValidationError`` for a tensor that is missing or cannot be cut between layers."""
    found = {}
    for name, weight in cut.weights.items():
        tensor = stored.get(_source(name, excerpt))
        if tensor is None:
            raise ValidationError(f"the artifact has no tensor for {_source(name, excerpt)}")
        floats = _cut(tensor.floats, tensor.weight, tensor.shape, weight.shape, excerpt)
        found[name] = replace(tensor, weight=name, shape=weight.shape, floats=floats, rule=None)
    return found


def _headed(architecture: Architecture, whole: Architecture) -> Architecture:
    """The architecture with an output head of its own if the model has one, whatever the configuration
    says."""
    if architecture.tied_head == whole.tied_head:
        return architecture
    heads = {name: shape for name, shape in whole.tensors.items() if name == HEAD}
    return replace(architecture, tied_head=whole.tied_head, tensors={**architecture.tensors, **heads})


def _source(name: str, excerpt: Excerpt) -> str:
    """The name in the model of a tensor of the excerpt."""
    parts = name.split(".", 2)
    if parts[0] != "layers":
        return name
    return f"layers.{excerpt.layers[int(parts[1])]}.{parts[2]}"


def _cut(floats: Rows, name: str, whole: tuple[int, ...], part: tuple[int, ...], excerpt: Excerpt) -> Rows:
    """Rows of a tensor of shape ``part``, from those of the model's of shape ``whole``."""
    if part == whole:
        return floats
    kept = len(excerpt.layers)
    rows, columns = math.prod(whole[:-1]), whole[-1]
    if part == (rows, columns // excerpt.of * kept):
        return excerpt.columns(floats)
    if part == (rows // excerpt.of * kept, columns):
        return excerpt.rows(floats, rows // excerpt.of)
    raise ValidationError(f"{name} cannot be cut between layers")
