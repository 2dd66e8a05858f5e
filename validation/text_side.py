"""What an artifact's runtime makes of text: its engine if it has one for the artifact, else its text side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ValidationError
from validation.engine import measure_engine
from validation.gates import Gate, fail_text, text_not_run
from validation.judging import judge_text, limits_of
from validation.limits import Limits
from validation.runners import TextRuntime
from validation.running import Bench
from validation.subject import Subject
from validation.tokenization import read_text_side


@dataclass(frozen=True, slots=True)
class TextSide:
    """What was measured of an artifact's text side."""

    gates: tuple[Gate, ...] = ()
    #: The ``engine`` of the report's ``runtime`` block, ``None`` where nothing was read.
    engine: Mapping[str, Any] | None = None


def measure_text_side(bench: Bench, subject: Subject, limits: Limits) -> TextSide:
    """Tokens, prompts and ends of answers, and an engine's own text, by the ``limits`` in force.

    There is nothing for an artifact that the runtime does not take for text. Raises ``ValidationError`` when
    an engine fails.
    """
    engine, text, artifact = bench.runner.engine, bench.runner.text, subject.artifact
    if engine is not None and engine.takes(artifact):
        with bench.directory() as name:
            found = measure_engine(
                bench.prepared,
                engine,
                artifact,
                bench.reference_for(subject.plan),
                Path(name),
                bench.progress,
                grids=subject.plan.applies_grids,
            )
        return TextSide(judge_text(bench, limits, found), found)
    if text is not None and text.takes(artifact):
        return _read(bench, text, artifact)
    return TextSide()


def _read(bench: Bench, runtime: TextRuntime, artifact: Path) -> TextSide:
    """A runtime's text side. An artifact that it cannot read fails its gates: the logits say what they
    say."""
    limits = limits_of(bench)
    if missing := runtime.missing():
        return TextSide(text_not_run(limits.values, missing, bench.settings.allow_unrun))
    with bench.directory() as name:
        try:
            found = read_text_side(bench.prepared, runtime, artifact, Path(name), bench.progress)
        except ValidationError as error:
            return TextSide(fail_text(limits.values, str(error)))
    return TextSide(judge_text(bench, limits, found), found)
