"""Qwen's byte-level BPE in llama.cpp, which cuts text for it as Qwen2's tokenizer does.

``src/llama-vocab.cpp`` calls the expression ``LLAMA_VOCAB_PRE_TYPE_QWEN2``.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from functools import partial
from typing import Final

from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import BYTE_LEVEL, LENGTH, NORMALIZER, PRE_TOKENIZER, Step
from converter.errors import TargetError
from targets.gguf.family import TokenizerModel

#: Between whose matches text is cut.
EXPRESSION: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUT: Final = {"type": "Split", "pattern": {"Regex": EXPRESSION}, "behavior": "Isolated", "invert": False}
#: transformers' classes that make the whole pipeline themselves, composition among it (5.23).
_COMPOSING: Final = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def tokenizer_model(tokenizer: Tokenizer) -> TokenizerModel:
    """llama.cpp's tokenizer for a checkpoint's, which may compose characters first."""
    composes = tokenizer.class_name in _COMPOSING or any(map(_is_composition, tokenizer.steps))
    return _COMPOSED if composes else _AS_WRITTEN


def _is_composition(step: Step) -> bool:
    return step.kind == NORMALIZER and step.component.get("type") == "NFC"


def _is_cut(step: Step) -> bool:
    return step.kind == PRE_TOKENIZER and dict(step.component) == _CUT


def _lacking(tokenizer: Tokenizer) -> list[Step]:
    return [
        step
        for step in tokenizer.steps
        if step.kind not in (BYTE_LEVEL, LENGTH) and not _is_cut(step) and not _is_composition(step)
    ]


def _check(tokenizer: Tokenizer) -> None:
    if not tokenizer.byte_level or sum(map(_is_cut, tokenizer.steps)) != 1:
        raise TargetError("gguf: the tokenizer cuts text otherwise than Qwen2's, as llama.cpp's does")


def _warnings(tokenizer: Tokenizer) -> list[str]:
    return ["gguf: llama.cpp composes no characters (NFC): texts that are not composed become other tokens"]


_AS_WRITTEN: Final = TokenizerModel("gpt2", _lacking, pre="qwen2", check=_check)
_COMPOSED: Final = replace(_AS_WRITTEN, normalized=partial(unicodedata.normalize, "NFC"), warnings=_warnings)
