"""Gemma 3 and 4 in LiteRT-LM and litert-torch (0.10.0).

Each workaround says which version it is for. The tests show that each is still needed: when one of them
fails, the workaround goes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from converter.checkpoint.special_tokens import (
    CHANNEL,
    CHANNEL_END,
    QUOTE,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_RESPONSE,
)
from targets.litert.family import LitertFamily

if TYPE_CHECKING:
    from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

#: Fields of ``llm_model_type.gemma4`` and the token of Gemma 4 that each takes.
_GEMMA4_TOKENS: Final[Mapping[str, str]] = {
    "code_fence_start": TOOL_CALL,
    "code_fence_end": TOOL_CALL_END,
    "open_quote": QUOTE,
    "close_quote": QUOTE,
    "function_response_start": TOOL_RESPONSE,
}
#: Begin and end of what Gemma 4 says in a channel.
_CHANNEL: Final = (CHANNEL, CHANNEL_END)


def _add_gemma3(message: LlmMetadata, tokens: Collection[str]) -> None:
    message.llm_model_type.gemma3.SetInParent()


def _add_gemma4(message: LlmMetadata, tokens: Collection[str]) -> None:
    kind = message.llm_model_type.gemma4
    kind.SetInParent()
    for field, token in _GEMMA4_TOKENS.items():
        if token in tokens:
            setattr(kind, field, token)
    begin, end = _CHANNEL
    if begin in tokens and end in tokens:
        message.channels.add(channel_name="thought", start=f"{begin}thought\n", end=end)


def allow_experts() -> None:
    """Let litert-torch's Gemma 4 model have experts.

    litert-torch 0.10.0 with transformers 5.23.0: transformers decides from the text of a class's module
    whether its experts can be chosen, and the module of litert-torch's class lacks what it looks for.
    """
    from litert_torch.generative.export_hf.model_ext.gemma4 import patch

    patch.LiteRTGemma4TextModel._can_set_experts_implementation_cached_value = True


def not_unified(text: Any) -> Any:
    """The configuration of a text model that litert-torch knows.

    litert-torch 0.10.0 has no text model for ``gemma4_unified``, whose text model is Gemma 4's without
    per-layer input and experts.
    """
    if text.model_type != "gemma4_unified_text":
        return text
    import transformers

    values = {**text.to_dict(), "model_type": "gemma4_text"}
    values |= {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
    return transformers.Gemma4TextConfig(**values)


def _per_layer_modules() -> Any:
    from litert_torch.generative.export_hf.model_ext.gemma4 import exportable_module

    return exportable_module


#: As of transformers 5.23. All others that it knows for such a model take the pipeline of ``tokenizer.json``.
_PIPELINE_CLASSES: Final = ("GemmaTokenizer", "GemmaTokenizerFast")
GEMMA3: Final = LitertFamily("gemma3", _add_gemma3, pipeline_classes=_PIPELINE_CLASSES)
GEMMA4: Final = LitertFamily(
    "gemma4",
    _add_gemma4,
    allow_experts,
    not_unified,
    _per_layer_modules,
    pipeline_classes=_PIPELINE_CLASSES,
)
