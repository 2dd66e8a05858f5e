"""Gemma 3 and 4 in onnxruntime-genai (0.18) and mobius.

onnxruntime-genai's model types ``gemma3`` and ``gemma4`` ask for vision and audio models beside the decoder;
``gemma3_text`` and ``gemma4_text`` do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from converter.checkpoint.architecture import Architecture
from targets.onnx.family import OnnxFamily

if TYPE_CHECKING:
    from mobius import ArchitectureConfig
    from onnxscript import nn


def _gemma3(architecture: Architecture, values: Mapping[str, Any]) -> tuple[nn.Module, ArchitectureConfig]:
    from mobius import ArchitectureConfig
    from mobius.models import Gemma3CausalLMModel

    configuration = ArchitectureConfig(rope_local_base_freq=10_000.0, attn_qk_norm=True, **values)
    return Gemma3CausalLMModel(configuration), configuration


def _gemma4(architecture: Architecture, values: Mapping[str, Any]) -> tuple[nn.Module, ArchitectureConfig]:
    from mobius import Gemma4Config
    from mobius.models import Gemma4CausalLMModel

    per_layer, experts = architecture.per_layer_input, architecture.experts
    mixture = {}
    if experts is not None:
        mixture = {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.active,
            "moe_intermediate_size": experts.feed_forward,
        }
    configuration = Gemma4Config(
        hidden_size_per_layer_input=per_layer.size if per_layer else 0,
        vocab_size_per_layer_input=per_layer.vocabulary if per_layer else 0,
        num_kv_shared_layers=sum(layer.kv_source is not None for layer in architecture.layers),
        enable_moe_block=experts is not None,
        **values,
        **mixture,
    )
    return Gemma4CausalLMModel(configuration), configuration


GEMMA3: Final = OnnxFamily("gemma3_text", _gemma3)
GEMMA4: Final = OnnxFamily("gemma4_text", _gemma4)
