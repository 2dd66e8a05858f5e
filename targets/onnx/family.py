"""What onnxruntime-genai and mobius know of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from converter.checkpoint.architecture import GELU_TANH, SILU, Architecture
from converter.errors import TargetError
from targets.families import family_of

if TYPE_CHECKING:
    from mobius import ArchitectureConfig
    from onnxscript import nn

#: transformers' names, which mobius takes, of the activations that graphs have.
ACTIVATIONS: Final = {GELU_TANH: "gelu_pytorch_tanh", SILU: "silu"}


@dataclass(frozen=True, slots=True)
class OnnxFamily:
    """An object of the entry-point group ``qatconvert.families.onnx``."""

    #: onnxruntime-genai's name of a decoder that takes ``input_ids``.
    model_type: str
    #: ``build(architecture, values)`` gives mobius's module of the text model and its configuration, made of
    #: ``values`` and of what only this family has (see ``targets.onnx.configuration``). Attention,
    #: embeddings, projections and head are replaced, so that of the module only the order of norms, MLP and
    #: sums counts. It imports mobius, and nothing else that is here does.
    build: Callable[[Architecture, Mapping[str, Any]], tuple[nn.Module, ArchitectureConfig]]


def onnx_family(architecture: Architecture) -> OnnxFamily:
    """What is known of the model's family; raises ``TargetError`` if nothing is."""
    return family_of("onnx", architecture.family, OnnxFamily)


def check_family(architecture: Architecture) -> None:
    """Raise ``TargetError`` for a model of no known family, and for one whose attention this target has not:
    it norms queries and keys."""
    onnx_family(architecture)
    if not architecture.query_key_norms:
        raise TargetError("onnx: the model norms no queries and keys, for which this target has no attention")
    if architecture.activation not in ACTIVATIONS:
        raise TargetError(f"onnx: the activation {architecture.activation} is not known to this target")
