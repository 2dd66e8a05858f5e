"""Tokenizers that a runtime would run otherwise than ``tokenizer.json`` says, refused by name."""

from __future__ import annotations

from collections.abc import Collection

from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import OF_THE_LIBRARY, OF_THE_TOKENS
from converter.errors import TargetError


def known_to_litert(tokenizer: Tokenizer) -> Collection[str]:
    """Kinds of steps that LiteRT-LM does as transformers does."""
    return OF_THE_TOKENS if tokenizer.rebuilt else OF_THE_LIBRARY


def refuse_steps(target: str, problem: str, tokenizer: Tokenizer, known: Collection[str]) -> None:
    """Raise ``TargetError`` for the first step of the tokenizer whose kind is not among those ``known``.
    ``problem`` says what is wrong with it, as in "which llama.cpp does not follow"."""
    lacking = [step for step in tokenizer.steps if step.kind not in known]
    if not lacking:
        return
    step, *others = lacking
    more = f" ({len(others)} more like it)" if others else ""
    advice = f"take it out of {step.file}"
    if all(step.kind in known_to_litert(tokenizer) for step in lacking):
        advice = "LiteRT-LM has it (--target litert)"
    raise TargetError(
        f"{target}: {step.file}: {step.where} is {step.what}{more}, {problem}, so that tokens or text "
        f"would differ: {advice}"
    )
