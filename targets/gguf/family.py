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
    """An object of the entry-point group ``qatconvert.families.gguf``.

    ``title`` is the name of a model that has no other. ``architecture`` is GGUF's name of what llama.cpp
    computes, by which gguf-py names tensors, and ``first_build`` the number of the first release that
    computes it. ``computes`` says what that is: names and values of fields of ``Architecture``. ``check``
    raises ``TargetError`` for a model that llama.cpp would not load, or compute otherwise, for a reason that
    ``computes`` cannot tell.

    ``add_hyperparameters`` adds the keys that llama.cpp reads, beside those of every family
    (``targets.gguf.hyperparameters``). ``tokenizer_model`` gives ``tokenizer.ggml.model``, a key of
    ``targets.gguf.vocabulary.FIRST_BUILDS``. ``rope_factors`` gives the divisors of the frequencies of
    full-attention layers, float32 ``[head_dim / 2]``, or ``None`` for a model without such a tensor.

    ``names`` are names of tensors of a layer that gguf-py's map lacks, both sides without the layer in front.
    A model of as many layers as one of ``own_rules`` says is computed by rules of its own, so that no part
    of it can stand for the whole.
    """

    title: str
    architecture: gguf.MODEL_ARCH
    first_build: int
    computes: Mapping[str, object]
    check: Callable[[Architecture], None]
    add_hyperparameters: Callable[[gguf.GGUFWriter, Architecture], None]
    tokenizer_model: Callable[[Tokenizer], str]
    rope_factors: Callable[[Architecture], NDArray[np.float32] | None] = no_factors
    names: Mapping[str, str] = field(default_factory=dict)
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
