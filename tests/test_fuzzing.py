"""Damaged files are read or refused in one line, and the fuzzers notice where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fuzzing
from fuzzing import trial

SEED = 1
#: Enough for every kind of damage; more are run by hand.
CASES = {"safetensors": 120, "documents": 120, "gguf": 150, "onnx": 100, "litert": 250}

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """``written(format)`` gives a directory with the format's right files."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            fuzzing.find(name).write(made[name])
        return made[name]

    return write


@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, written: Write) -> None:
    outcome = trial.run(name, written(name), seed=SEED, cases=CASES[name])
    assert not outcome.failures
    assert 0 < outcome.read < outcome.cases, "the damage is either none or too much"


@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_a_case_is_known_by_seed_and_index(name: str, written: Write) -> None:
    format, files = fuzzing.find(name), fuzzing.read_files(written(name))
    made = [[fuzzing.case(format, files, seed, index) for index in range(20)] for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("reader", "name", "problem"),
    [
        ("without_checking_what_is_left", "gguf", "Error at "),
        ("without_bounding_the_header", "safetensors", "MemoryError"),
        ("with_the_bytes_of_a_name_in_the_message", "safetensors", "not one short printable line"),
        ("that_never_ends", "gguf", "took more than 2 s"),
        ("that_crashes", "gguf", "SIGABRT"),
    ],
)
def test_a_broken_reader_is_found(reader: str, name: str, problem: str, written: Write) -> None:
    cases = 1 if reader.startswith("that") else 60
    outcome = trial.run(
        name, written(name), seed=SEED, cases=cases, reader=f"support.broken_readers:{reader}", seconds=2
    )
    assert any(problem in found for found in outcome.failures.values()), outcome.failures


def test_failing_files_are_kept_and_the_right_ones_mended(written: Write, tmp_path: Path) -> None:
    directory = written("gguf")
    before = fuzzing.read_files(directory)
    outcome = trial.run(
        "gguf", directory, seed=SEED, cases=1, reader="support.broken_readers:that_crashes", seconds=2
    )
    assert fuzzing.read_files(directory) == before
    kept = trial.keep("gguf", directory, SEED, min(outcome.failures), tmp_path)
    (name,) = fuzzing.read_files(kept)
    assert (kept / name).read_bytes() != before[name]
