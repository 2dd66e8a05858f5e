"""What LiteRT-LM and litert-torch know of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.checkpoint.architecture import Architecture
from targets.families import family_of

if TYPE_CHECKING:
    from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata


def _nothing() -> None:
    """Of a family that needs no preparation."""


def _as_it_is(text: Any) -> Any:
    """Of a family whose configuration litert-torch can export."""
    return text


@dataclass(frozen=True, slots=True)
class LitertFamily:
    """An object of the entry-point group ``qatconvert.families.litert``.

    It imports litert-torch and transformers in its functions alone. ``prepare``, ``configuration`` and
    ``per_layer_modules`` are called in the child that exports.
    """

    #: The ``model_type`` for which litert-torch has its patches.
    extension: str
    #: ``add_metadata(message, tokens)`` fills in how LiteRT-LM reads prompts and answers of a model with the
    #: texts ``tokens`` in its vocabulary.
    add_metadata: Callable[[LlmMetadata, Collection[str]], None]
    #: Called once, before a model is made.
    prepare: Callable[[], None] = _nothing
    #: Turns transformers' own configuration of the text model into one that litert-torch can export.
    configuration: Callable[[Any], Any] = _as_it_is
    #: Gives litert-torch's module with the decoder and the embedder of externalised per-layer embeddings;
    #: ``None`` for a family that has none.
    per_layer_modules: Callable[[], Any] | None = None
    #: transformers' classes of tokenizers that make the family's pipeline themselves, and take the tokens
    #: alone from ``tokenizer.json``.
    pipeline_classes: tuple[str, ...] = ()


def litert_family(architecture: Architecture) -> LitertFamily:
    """What is known of the model's family; raises ``TargetError`` if nothing is."""
    return family_of("litert", architecture.family, LitertFamily)
