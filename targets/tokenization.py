"""Tokenizers that a runtime would run otherwise than transformers does, refused by name."""

from __future__ import annotations

from collections.abc import Collection

from converter.errors import TargetError
from converter.tokenizer import Tokenizer
from converter.tokenizer_pipeline import OF_THE_LIBRARY


def refuse_steps(target: str, runtime: str, tokenizer: Tokenizer, known: Collection[str]) -> None:
    """Raise ``TargetError`` for the first step of the tokenizer that the ``runtime`` does not do as
    transformers does: whose kind is not among those ``known``."""
    lacking = [step for step in tokenizer.steps if step.kind not in known]
    if not lacking:
        return
    step, *others = lacking
    more = f" ({len(others)} more like it)" if others else ""
    advice = "take it out of tokenizer.json"
    if all(step.kind in OF_THE_LIBRARY for step in lacking):
        advice = "only LiteRT-LM has it (--target litert)"
    raise TargetError(
        f"{target}: tokenizer.json: {step.where} is {step.what}{more}; {runtime} does otherwise than "
        f"transformers there, so that tokens or text would differ: {advice}"
    )
