"""docs/versions.md says what ``pyproject.toml`` allows and what the tests run with.

``python tests/distribution/test_versions.py`` writes its table anew.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "versions.md"
_TABLE = re.compile(r"^\| library .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def pinned() -> dict[str, str]:
    lines = (ROOT / "converter" / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): found for name, found in pairs}


def table() -> str:
    """The table as it must be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = pinned()
    rows = ["| library | extra | allowed | tested |", "|---|---|---|---|"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, lines in groups.items():
        if extra in ("all", "dev"):
            continue
        for one in map(Requirement, lines):
            name = canonicalize_name(one.name)
            allowed = ", ".join(sorted(map(str, one.specifier), reverse=True))
            rows.append(f"| {name} | {f'`{extra}`' if extra else ''} | {allowed} | {tested[name]} |")
    return "\n".join(rows)


def test_the_page_has_the_ranges_and_the_tested_versions() -> None:
    found = _TABLE.search(PAGE.read_text())
    assert found is not None
    assert found[0] == table(), "python tests/distribution/test_versions.py"


def test_the_tests_run_with_the_tested_versions() -> None:
    running = {}
    for name in pinned():
        try:
            running[name] = version(name).partition("+")[0]  # ``2.13.0+cpu`` is a build of 2.13.0
        except PackageNotFoundError:
            continue
    assert running == {name: pinned()[name] for name in running}
    assert {"onnxruntime", "litert-lm", "torch", "transformers", "xllamacpp"} <= set(running)


if __name__ == "__main__":
    PAGE.write_text(_TABLE.sub(lambda _: table(), PAGE.read_text()))
