"""What llama.cpp knows of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.tokenizer import Tokenizer
from converter.errors import TargetError
from targets.families import family_of, find_family


def no_factors(architecture: Architecture) -> None:
    """The factors of a family that has none."""


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """An object of the entry-point group ``qatconvert.families.gguf``."""

    #: The name of a model that has no other.
    title: str
    #: GGUF's name of what llama.cpp computes, by which gguf-py names tensors.
    architecture: gguf.MODEL_ARCH
    #: Number of the first release of llama.cpp that computes it.
    first_build: int
    #: What that is: names and values of fields of ``Architecture``.
    computes: Mapping[str, object]
    #: Raises ``TargetError`` for a model that llama.cpp would not load, or compute otherwise, for a reason
    #: that ``computes`` cannot tell.
    check: Callable[[Architecture], None]
    #: Adds the keys that llama.cpp reads, beside those of every family (``targets.gguf.hyperparameters``).
    add_hyperparameters: Callable[[gguf.GGUFWriter, Architecture], None]
    #: Gives ``tokenizer.ggml.model``, a key of ``targets.gguf.vocabulary.FIRST_BUILDS``.
    tokenizer_model: Callable[[Tokenizer], str]
    #: Gives the divisors of the frequencies of full-attention layers, float32 ``[head_dim / 2]``, or ``None``
    #: for a model without such a tensor.
    rope_factors: Callable[[Architecture], NDArray[np.float32] | None] = no_factors
    #: Names of tensors of a layer that gguf-py's map lacks, both sides without the layer in front.
    names: Mapping[str, str] = field(default_factory=dict)
    #: Numbers of layers. A model of as many is computed by rules of its own, so that no part of it can stand
    #: for the whole.
    own_rules: frozenset[int] = frozenset()

    @property
    def architecture_name(self) -> str:
        """``general.architecture``, with which the keys of hyperparameters begin."""
        return str(gguf.MODEL_ARCH_NAMES[self.architecture])


def gguf_family(architecture: Architecture) -> GgufFamily:
    """What is known of the model's family; raises ``TargetError`` if nothing is."""
    return family_of("gguf", architecture.family, GgufFamily)


def family_named(architecture: str) -> tuple[str, GgufFamily] | None:
    """The family of files whose ``general.architecture`` is given, with its name; ``None`` if none is
    known."""
    return find_family(
        "gguf", architecture, GgufFamily, lambda family: family.architecture_name == architecture
    )


def check_computed(architecture: Architecture) -> None:
    """Raise ``TargetError`` for a model that is otherwise than what llama.cpp computes for its family."""
    family = gguf_family(architecture)
    for name, value in family.computes.items():
        found = getattr(architecture, name)
        if found != value:
            raise TargetError(
                f"gguf: {name} of this {architecture.family} is {found}; "
                f"llama.cpp's {family.architecture_name} has {value}"
            )
