"""Reference logits that are computed while something else is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import ValidationError
from converter.system.child import Worker
from validation.reference.ahead import computed_ahead, logits_of
from validation.reference.process import reference_worker
from validation.settings import Prepared, Settings, prepare

SOURCE = {"files": ["0" * 64]}


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@pytest.fixture
def prepared(checkpoint_factory: Callable[..., Path], tmp_path: Path, worker: Worker) -> Iterator[Prepared]:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    settings = Settings(positions=64, cache=tmp_path / "cache")
    with prepare(checkpoint, settings, worker=worker) as made:
        yield made


def test_at_the_end_of_the_block_the_logits_are_there(prepared: Prepared, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    with computed_ahead(
        prepared, lambda: SOURCE, lambda: None, lambda stage, done, total: seen.append((stage, done))
    ):
        began = list((tmp_path / "cache").glob("*.json"))
    assert not began
    (kept,) = (tmp_path / "cache").glob("*.json")
    assert [done for stage, done in seen if stage == "reference logits (transformers)"][-1] == 64
    assert len(seen) > 1
    seen.clear()
    found = logits_of(
        prepared,
        SOURCE,
        tmp_path,
        lambda: None,
        lambda stage, done, total: seen.append((stage, done)),
    )
    assert seen == []  # what was kept takes no time
    np.testing.assert_array_equal(found, np.load(kept.with_suffix(".npy")))


def test_an_error_in_the_block_ends_the_computation(
    checkpoint_factory: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    with (
        reference_worker() as own,
        prepare(checkpoint, Settings(positions=64, cache=tmp_path / "cache"), worker=own) as made,
    ):

        def slow() -> dict[str, object]:
            time.sleep(1)
            return SOURCE

        began = time.monotonic()
        with pytest.raises(ZeroDivisionError), computed_ahead(made, slow, lambda: None, silent):
            raise ZeroDivisionError
        assert time.monotonic() - began < 60
        # the worker serves whoever comes next
        logits_of(made, SOURCE, tmp_path, lambda: None, silent)


def test_what_fails_is_left_to_whoever_asks(prepared: Prepared, tmp_path: Path) -> None:
    def changed() -> None:
        raise ValidationError("the checkpoint changed")

    with computed_ahead(prepared, lambda: SOURCE, changed, silent):
        pass
    assert not list((tmp_path / "cache").glob("*.json"))
    with pytest.raises(ValidationError, match="the checkpoint changed"):
        logits_of(prepared, SOURCE, tmp_path, changed, silent)


def test_where_a_file_stands_in_the_place_of_the_cache_nothing_is_computed(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no directory")
    asked: list[int] = []
    with computed_ahead(prepared, lambda: asked.append(1) or SOURCE, lambda: None, silent):  # type: ignore[func-returns-value]
        pass
    assert not asked
