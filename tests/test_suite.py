"""What the suite demands of every test, and what it tells of a run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run(source, *options)``: pytest, set up as here, on a file of tests."""

    def pytest_on(source: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_it.py").write_text(source)
        setup = ["-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "conftest"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *setup, "-p", "no:cacheprovider", *options, "test_it.py"],
            cwd=tmp_path,
            # options of the outer run are not those of the inner one
            env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
            capture_output=True,
            text=True,
        )

    return pytest_on


def test_a_warning_is_an_error(run: Run) -> None:
    done = run("import warnings\ndef test_it(): warnings.warn('old', DeprecationWarning)\n")
    assert (done.returncode, "DeprecationWarning: old" in done.stdout) == (1, True), done.stdout


def test_a_file_that_is_left_open_is_an_error(run: Run) -> None:
    done = run("def test_it(): open(__file__)\n")
    assert (done.returncode, "unclosed file" in done.stdout) == (1, True), done.stdout


def test_a_marker_that_nobody_knows_is_an_error(run: Run) -> None:
    done = run("import pytest\n@pytest.mark.slwo\ndef test_it(): pass\n")
    assert done.returncode != 0
    assert "'slwo' not found in `markers`" in done.stdout


def test_slow_tests_can_be_left_out_and_who_waits_for_an_export_is_one(run: Run) -> None:
    source = "import pytest\n@pytest.mark.slow\ndef test_it(): assert 0\n"
    source += "def test_waits(litert_bundle): assert 0\ndef test_quick(): pass\n"
    done = run(source, "-m", "not slow")
    assert (done.returncode, "1 passed, 2 deselected" in done.stdout) == (0, True), done.stdout


def test_the_order_is_random_and_the_seed_that_is_told_repeats_it(run: Run) -> None:
    source = (
        "import pytest\n@pytest.mark.parametrize('number', range(30))\ndef test_it(number): print(number)\n"
    )
    told = run(source, "-s")
    (seed,) = re.findall(r"random order: --randomly-seed=([0-9]+)", told.stdout)
    order = re.findall(r"^\.?([0-9]+)$", told.stdout, re.MULTILINE)
    assert sorted(map(int, order)) == list(range(30)) != list(map(int, order))
    again = run(source, "-s", f"--randomly-seed={seed}")
    assert re.findall(r"^\.?([0-9]+)$", again.stdout, re.MULTILINE) == order
