"""Reference logits that are computed while something else is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.errors import ValidationError
from converter.system.child import Worker
from converter.system.progress import no_progress
from validation.reference.ahead import Identity, computed_ahead, logits_of
from validation.reference.process import reference_worker
from validation.settings import Prepared, Settings, prepare

FILES = ["0" * 64]
IDENTITY = Identity(lambda: FILES)


@pytest.fixture
def prepared(checkpoint_factory: Callable[..., Path], tmp_path: Path, worker: Worker) -> Iterator[Prepared]:
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    settings = Settings(positions=64, cache=tmp_path / "cache")
    with prepare(checkpoint, settings, worker=worker) as made:
        yield made


def test_at_the_end_of_the_block_the_logits_are_there(prepared: Prepared, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    with computed_ahead(prepared, IDENTITY, lambda stage, done, total: seen.append((stage, done))):
        began = list((tmp_path / "cache").glob("*.json"))
    assert not began
    (kept,) = (tmp_path / "cache").glob("*.json")
    assert [done for stage, done in seen if stage == "reference logits (transformers)"][-1] == 64
    assert len(seen) > 1
    seen.clear()
    found = logits_of(
        prepared,
        IDENTITY,
        tmp_path,
        lambda stage, done, total: seen.append((stage, done)),
    )
    assert seen == []  # what was kept takes no time
    np.testing.assert_array_equal(found, np.load(kept.with_suffix(".npy")))


@pytest.fixture
def long(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> Iterator[Prepared]:
    """A validation whose reference has work for some fifteen seconds."""
    text = tmp_path / "text.txt"
    text.write_text("A river winds through the valley, and nobody counts the stones. " * 16_384)
    settings = Settings(positions=65_536, text=text, cache=tmp_path / "cache")
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    with reference_worker() as own, prepare(checkpoint, settings, worker=own) as made:
        yield made


def test_an_error_in_the_block_ends_a_long_computation_at_once(long: Prepared, tmp_path: Path) -> None:
    under_way = Event()
    done: list[int] = []
    began: list[float] = []

    def show(stage: str, count: int, total: int) -> None:
        done.append(count)
        under_way.set()

    def fail() -> None:
        assert under_way.wait(60)
        began.append(time.monotonic())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), computed_ahead(long, IDENTITY, show):
        fail()
    assert time.monotonic() - began[0] < 10
    assert done[-1] < long.tokens.positions
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(ValidationError, match=r"^reference: given up$"):
        logits_of(long, IDENTITY, tmp_path, no_progress)


def test_after_an_error_in_the_block_no_computation_begins(long: Prepared, tmp_path: Path) -> None:
    failed = Event()
    done: list[int] = []

    def late() -> list[str]:
        failed.wait(60)
        time.sleep(0.5)  # the block has ended meanwhile
        return FILES

    def fail() -> None:
        failed.set()
        raise ZeroDivisionError

    def show(stage: str, count: int, total: int) -> None:
        done.append(count)

    with pytest.raises(ZeroDivisionError), computed_ahead(long, Identity(late), show):
        fail()
    assert not any(done)
    assert not list((tmp_path / "cache").iterdir())


def test_what_fails_is_left_to_whoever_asks(prepared: Prepared, tmp_path: Path) -> None:
    def changed() -> None:
        raise ValidationError("the checkpoint changed")

    identity = Identity(lambda: FILES, changed)
    with computed_ahead(prepared, identity, no_progress):
        pass
    assert not list((tmp_path / "cache").glob("*.json"))
    with pytest.raises(ValidationError, match="the checkpoint changed"):
        logits_of(prepared, identity, tmp_path, no_progress)


def test_where_a_file_stands_in_the_place_of_the_cache_nothing_is_computed(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no directory")
    asked: list[int] = []

    def hashed() -> list[str]:
        asked.append(1)
        return FILES

    with computed_ahead(prepared, Identity(hashed), no_progress):
        pass
    assert not asked
