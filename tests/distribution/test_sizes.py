"""README and docs/installation.md tell the sizes of the extras that were recorded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from support.pages import README, ROOT

INSTALLATION = ROOT / "docs" / "installation.md"
BENCHMARK = ROOT / "benchmarks" / "installed_sizes.py"


def rows(text: str) -> dict[str, list[str]]:
    """Rows of tables by their first cell."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in more] for first, *more in lines}


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[str]]:
    """Packages, download, place on the disk and PyTorch's part of it, by the extras as pages name them."""
    words = [sys.executable, str(BENCHMARK), "--recorded"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {first: more for first, more in rows(done.stdout).items() if first[0] == "`" or first == "none"}


def test_every_extra_was_measured_alone(recorded: dict[str, list[str]]) -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    (everything,) = (line for line in lines if line.startswith("all = "))
    extras = Requirement(everything.split('"')[1]).extras
    assert {f"`{extra}`" for extra in extras} | {"none", "`all`"} <= set(recorded)


def test_the_page_has_what_was_recorded(recorded: dict[str, list[str]]) -> None:
    told = rows(INSTALLATION.read_text("utf-8"))
    assert {extras: told[extras][1:] for extras in recorded} == recorded


def test_readme_has_what_was_recorded(recorded: dict[str, list[str]]) -> None:
    told = rows(README.read_text("utf-8"))
    shown = {extras: told[extras][1:] for extras in recorded}
    assert shown == {extras: [download, disk] for extras, (_, download, disk, _) in recorded.items()}
