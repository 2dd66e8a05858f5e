"""What llama.cpp knows of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import gguf
import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import Step
from converter.errors import TargetError
from targets.families import family_of, find_family


def no_factors(architecture: Architecture) -> None:
    """The factors of a family that has none."""


def nothing(tokenizer: Tokenizer) -> tuple[()]:
    """What is wrong with a tokenizer of a model that any fits, or that nobody need be warned of."""
    return ()


def as_it_is(text: str) -> str:
    """The text of a tokenizer that changes none before it is cut."""
    return text


@dataclass(frozen=True, slots=True)
class TokenizerModel:
    """A tokenizer that llama.cpp has, into which it reads the vocabulary of a file."""

    #: llama.cpp's name of it (``tokenizer.ggml.model``).
    name: str
    #: Gives the steps of a checkpoint's tokenizer that it does not do.
    lacking: Callable[[Tokenizer], Sequence[Step]]
    #: llama.cpp's name of how a text is cut before pieces are merged (``tokenizer.ggml.pre``), ``None`` for a
    #: model that has one way.
    pre: str | None = None
    #: Number of the first release of llama.cpp that has it.
    first_build: int = 0
    #: Raises ``TargetError`` for a tokenizer that the model cannot be, for a reason that no step tells.
    check: Callable[[Tokenizer], object] = nothing
    #: Gives a score for every token, by which pieces are merged. ``None`` for a model that takes merges.
    scores: Callable[[Tokenizer], Sequence[float]] | None = None
    #: Special tokens that llama.cpp must render, since its chat parsers read them.
    visible: frozenset[str] = frozenset()
    #: Prompts begin with BOS.
    adds_bos: bool = False
    #: What the checkpoint's tokenizer makes of a text before it cuts it, and llama.cpp does not: a text that
    #: it changes becomes other tokens there.
    normalized: Callable[[str], str] = as_it_is
    #: Gives a line for each way in which llama.cpp's tokens will differ all the same.
    warnings: Callable[[Tokenizer], Sequence[str]] = nothing


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
    #: Gives llama.cpp's tokenizer for a checkpoint's.
    tokenizer_model: Callable[[Tokenizer], TokenizerModel]
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
