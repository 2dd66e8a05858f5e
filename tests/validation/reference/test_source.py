"""The reference of a stored form that transformers does not load: its numbers, written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converter.checkpoint.opened import open_checkpoint
from converter.system.child import Worker
from support.outside import packed_forms
from validation.reference.ahead import logits_of
from validation.reference.source import DEQUANTIZING
from validation.settings import Settings, prepare

(METHOD,) = packed_forms()


def test_the_numbers_of_a_packed_form_are_counted_while_they_are_written(
    form_factory: Callable[[str], Path], tmp_path: Path, worker: Worker
) -> None:
    checkpoint = open_checkpoint(form_factory(METHOD))
    stages: dict[str, list[tuple[int, int]]] = {}

    def show(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, []).append((done, total))

    with prepare(checkpoint, Settings(positions=64, cache=tmp_path / "cache"), worker=worker) as prepared:
        logits_of(prepared, None, tmp_path, show)
    names = ["hashing the checkpoint", "reference logits (transformers)", DEQUANTIZING]
    assert list(stages) == names
    written = [done for done, _ in stages[DEQUANTIZING]]
    (total,) = {total for _, total in stages[DEQUANTIZING]}
    assert len(written) > len(checkpoint.weights) / 2
    assert written == sorted(set(written))
    assert written[-1] == total
    # all but the rows of the embedding that no token of the text looks up
    assert checkpoint.parameters / 2 < total <= checkpoint.parameters
