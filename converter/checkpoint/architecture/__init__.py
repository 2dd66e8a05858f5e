"""Text architectures: one module per family, found by the ``model_type`` of ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping

from converter.checkpoint.architecture import gemma3, gemma4
from converter.checkpoint.architecture.keys import LONGEST_ROW
from converter.checkpoint.architecture.layers import (
    FULL,
    SLIDING,
    Architecture,
    Experts,
    Family,
    Layer,
    PerLayerInput,
)
from converter.errors import CheckpointError
from converter.system.untrusted import Settings, shown

__all__ = [
    "FULL",
    "SLIDING",
    "Architecture",
    "Experts",
    "Family",
    "Layer",
    "PerLayerInput",
    "known_model_types",
    "read_architecture",
]

#: A new architecture is one module and one entry here.
FAMILIES: tuple[Family, ...] = (gemma4.FAMILY, gemma3.FAMILY)


def known_model_types() -> tuple[str, ...]:
    """Every ``model_type`` that can be read, sorted."""
    return tuple(sorted(name for family in FAMILIES for name in family.model_types))


def read_architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture that a ``config.json`` describes.

    Both layouts are read: the Hub's (``global_head_dim``, ``num_global_key_value_heads``) and the one
    that transformers 5.23 saves (``per_layer_config``). Keys that are absent take the defaults of
    transformers' configuration classes. Raises ``CheckpointError`` that names the key.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return _checked(family.read(Settings(config, "config.json"), str(model_type)))
    known = ", ".join(known_model_types())
    if model_type is None:
        raise CheckpointError(f"config.json: model_type is missing; the known ones are {known}")
    raise CheckpointError(
        f"config.json: model_type {shown(model_type)} is unknown; the known ones are {known}"
    )


def _checked(architecture: Architecture) -> Architecture:
    """Refuse rows that are too long to be read one at a time: products of sizes that are each allowed."""
    for name, shape in architecture.tensors.items():
        if shape[-1] > LONGEST_ROW:
            raise CheckpointError(
                f"config.json: gives tensor {name!r} rows of {shape[-1]} values, more than {LONGEST_ROW}"
            )
    return architecture
