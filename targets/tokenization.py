"""Tokenizers that a runtime would run otherwise than ``tokenizer.json`` says, refused by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from converter.checkpoint.opened import Checkpoint
from converter.checkpoint.tokenizer import Tokenizer
from converter.checkpoint.tokenizer_pipeline import Step
from converter.errors import TargetError
from targets.target import find_target, known_targets


def steps_beside(known: Collection[str], tokenizer: Tokenizer) -> Sequence[Step]:
    """The steps of a tokenizer whose kinds are not among those ``known``."""
    return [step for step in tokenizer.steps if step.kind not in known]


def refuse_steps(target: str, problem: str, checkpoint: Checkpoint, lacking: Sequence[Step]) -> None:
    """Raise ``TargetError`` for the first of the steps that the runtime of ``target`` is ``lacking``, if
    there is one. ``problem`` says what is wrong with it, as in "which llama.cpp does not follow". The advice
    names the other targets whose runtimes do all of them."""
    if not lacking:
        return
    step, *others = lacking
    more = f" ({len(others)} more like it)" if others else ""
    takers = " or ".join(f"--target {name}" for name in _takers(target, checkpoint, lacking))
    advice = f"{takers} does it" if takers else f"take it out of {step.file}"
    raise TargetError(
        f"{target}: {step.file}: {step.where} is {step.what}{more}, {problem}, so that tokens or text "
        f"would differ: {advice}"
    )


def _takers(target: str, checkpoint: Checkpoint, lacking: Sequence[Step]) -> Iterator[str]:
    """Other targets whose runtimes do all of the steps."""
    for name in known_targets():
        if name == target:
            continue
        with suppress(Exception):  # it does not know the family, or is another distribution's and broken
            if not any(step in lacking for step in find_target(name).lacking_steps(checkpoint)):
                yield name
