"""The text model in torch, with stand-ins for its matrices; in the child alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import transformers
from litert_torch.generative.export_hf.core import patches as _patches  # noqa: F401  for its effect
from litert_torch.generative.export_hf.core import weights_loader
from litert_torch.generative.export_hf.model_ext import patches

from converter.checkpoint.architecture import Architecture
from converter.checkpoint.canonical_names import EMBEDDING, HEAD
from converter.checkpoint.weight import Weight
from converter.errors import TargetError
from targets.litert.export.experts import FusedExperts, fused_shape
from targets.litert.export.placeholders import StandIns
from targets.litert.export.projections import Projection
from targets.litert.export.skeleton import Skeleton
from targets.litert.export.workarounds import text_configuration
from targets.litert.family import litert_family

#: litert-torch's attention, which keeps keys and values as LiteRT-LM wants them.
ATTENTION: Final = "lrt_transposed_attention"
_EXPERTS: Final = ".experts"


@dataclass(frozen=True, slots=True)
class TextModel:
    """A transformers model for text, its configuration, and the stand-ins in it."""

    model: Any
    config: Any
    stand_ins: StandIns


def build(checkpoint: Skeleton) -> TextModel:
    """The text model of a checkpoint of any layout, all of whose matrices are stand-ins, named canonically.

    A head tied to the embedding shares its stand-in. Norms and other vectors have their values. Raises
    ``TargetError`` for a model that does not have the tensors of the checkpoint.
    """
    architecture = checkpoint.architecture
    family = litert_family(architecture)
    config = text_configuration(transformers.AutoConfig.from_pretrained(checkpoint.directory), family)
    config.tie_word_embeddings = False  # the head gets its own place, and what belongs there is decided below
    config._attn_implementation = ATTENTION
    config.dtype = torch.float32
    family.prepare()
    with patches.get_patch_context(family.extension), weights_loader.init_params_on_meta():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    config.tie_word_embeddings = architecture.tied_head
    stand_ins = StandIns()
    places = _Places(architecture, stand_ins)
    _put_experts(model, architecture, places)
    _put_projections(model, places)
    _put_values(model, checkpoint.weights, places)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    missing = architecture.tensors.keys() - places.used
    if left or missing:
        raise TargetError(
            f"transformers' model has no place for {min(missing)}"
            if missing
            else f"transformers' model has a tensor that the checkpoint lacks: {left[0]}"
        )
    return TextModel(model.eval(), config, stand_ins)


class _Places:
    """Gives every matrix its stand-ins, and remembers which of the checkpoint's tensors have a place."""

    def __init__(self, architecture: Architecture, stand_ins: StandIns) -> None:
        self._stand_ins, self._tied = stand_ins, architecture.tied_head
        self._shapes = architecture.tensors
        self._made: dict[str, torch.nn.Parameter] = {}
        self.used: set[str] = set()

    def matrix(self, name: str) -> torch.nn.Parameter:
        """The one stand-in of a weight, that of the embedding for a tied head without a type of its own."""
        self.used.add(name)
        if name == HEAD and self._tied:
            name = EMBEDDING
        if name not in self._made:
            self._made[name] = self._stand_ins.parameter(name, self._shape(name))
        return self._made[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        if shape is None:
            raise TargetError(f"transformers' model has a matrix that the checkpoint lacks: {name}")
        return fused_shape(shape, name) if len(shape) == 3 else shape


def _canonical(name: str) -> str:
    return name.removeprefix("model.")


def _put_experts(model: Any, architecture: Architecture, places: _Places) -> None:
    for name, module in list(model.named_modules()):
        if name.endswith(_EXPERTS) and architecture.experts is not None:
            prefix = _canonical(name)
            parent = model.get_submodule(name.rpartition(".")[0])
            parent.experts = FusedExperts(
                architecture.experts,
                module.act_fn,
                lambda kind, prefix=prefix: places.matrix(f"{prefix}.{kind}"),  # type: ignore[misc]
            )


def _put_projections(model: Any, places: _Places) -> None:
    for name, module in list(model.named_modules()):
        for kind, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                canonical = _canonical(f"{name}.{kind}.weight" if name else f"{kind}.weight")
                weight = places.matrix(canonical)
                _check_shape(
                    f"{name}.{kind}".removeprefix("."), tuple(child.weight.shape), tuple(weight.shape)
                )
                setattr(module, kind, Projection(weight))


def _put_values(model: Any, weights: Mapping[str, Weight], places: _Places) -> None:
    """Stand-ins for embeddings; values for vectors, of which some are buffers in transformers 5.23."""
    for name, module in list(model.named_modules()):
        for kind, parameter in list(module._parameters.items()):
            canonical = _canonical(f"{name}.{kind}" if name else kind)
            if parameter is None or not parameter.is_meta:
                continue
            _check_shape(canonical, tuple(parameter.shape), _shape_of(weights, canonical))
            if parameter.dim() > 1:
                module._parameters[kind] = places.matrix(canonical)
            else:
                values = _values(weights[canonical])
                module._parameters[kind] = torch.nn.Parameter(values, requires_grad=False)
                places.used.add(canonical)
        for kind in list(module._buffers):
            canonical = _canonical(f"{name}.{kind}" if name else kind)
            if canonical in weights:
                module._buffers[kind] = _values(weights[canonical])
                places.used.add(canonical)


def _shape_of(weights: Mapping[str, Weight], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise TargetError(f"transformers' model has a tensor that the checkpoint lacks: {name}")
    return weights[name].shape


def _check_shape(name: str, model: tuple[int, ...], checkpoint: tuple[int, ...]) -> None:
    if model != checkpoint:
        raise TargetError(
            f"{name} is {list(model)} in transformers' model, {list(checkpoint)} in the checkpoint"
        )


def _values(weight: Weight) -> torch.Tensor:
    """A vector's values, float32 in its own shape."""
    assert math.prod(weight.shape) == weight.size
    values = np.array(weight.floats(0, weight.rows), np.float32, copy=True)
    return torch.from_numpy(values.reshape(weight.shape))
