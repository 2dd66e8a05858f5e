"""Text architectures: one module per family, found by the ``model_type`` of ``config.json``.

Families are objects in the entry-point group ``qatconvert.families``, so that another distribution can bring
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from converter.checkpoint.architecture.keys import LONGEST_ROW
from converter.checkpoint.architecture.layers import (
    FULL,
    GELU_TANH,
    SILU,
    SLIDING,
    Architecture,
    Experts,
    Family,
    Layer,
    PerLayerInput,
)
from converter.errors import CheckpointError, ExtensionError
from converter.filenames import CONFIG
from converter.system.extensions import load, registered
from converter.system.untrusted import Settings, shown

__all__ = [
    "FULL",
    "GELU_TANH",
    "SILU",
    "SLIDING",
    "Architecture",
    "Experts",
    "Family",
    "Layer",
    "PerLayerInput",
    "read_architecture",
]

_GROUP: Final = "qatconvert.families"


def read_architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture that a ``config.json`` describes.

    Both layouts are read: the Hub's (``global_head_dim``, ``num_global_key_value_heads``) and the one
    that transformers 5.23 saves (``per_layer_config``). Keys that are absent take the defaults of
    transformers' configuration classes. Raises ``CheckpointError`` that names the key.
    """
    model_type = config.get("model_type")
    known: list[str] = []
    broken: list[str] = []
    for name in _by_likeness(model_type):
        try:
            family = load(_GROUP, name, Family)
        except ExtensionError as error:  # another one may know the model
            broken.append(f"; {error}")
            continue
        if model_type in family.model_types:
            return _checked(family.read(Settings(config, CONFIG), str(model_type)))
        if model_type in family.drafters:
            raise CheckpointError(
                f"config.json: model_type {model_type!r} is a drafter's, which proposes tokens to another "
                "model and answers nothing by itself: give the model that it belongs to"
            )
        known += family.model_types
    what = "is missing" if model_type is None else f"{shown(model_type)} is unknown"
    raise CheckpointError(
        f"config.json: model_type {what}; the known ones are {', '.join(sorted(known))}{''.join(broken)}"
    )


def _by_likeness(model_type: object) -> list[str]:
    """Names of the registered families: first those that the ``model_type`` begins with, the longest first,
    so that no other one is loaded for it."""
    own = str(model_type)
    alike = [name for name in registered(_GROUP) if own == name or own.startswith(f"{name}_")]
    return [
        *sorted(alike, key=len, reverse=True),
        *(name for name in registered(_GROUP) if name not in alike),
    ]


def _checked(architecture: Architecture) -> Architecture:
    """Refuse rows that are too long to be read one at a time: products of sizes that are each allowed."""
    for name, shape in architecture.tensors.items():
        if shape[-1] > LONGEST_ROW:
            raise CheckpointError(
                f"config.json: gives tensor {name!r} rows of {shape[-1]} values, more than {LONGEST_ROW}"
            )
    return architecture
