"""The lock files agree with what the package requires and with what was tested, and install."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("base", "all")
_HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
#: What no lock file has; see ``requirements/lock.py``.
_LEFT_OUT = re.compile(r"torch|triton|(cuda|nvidia)-.*")


def locked_versions(name: str) -> dict[str, list[str]]:
    """Versions by name, one for each marker; every one has hashes, and no line is anything else."""
    found: dict[str, list[str]] = {}
    hashes = 1
    for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines():
        if line.startswith("#"):
            continue
        if _HASH.fullmatch(line):
            hashes += 1
            continue
        assert hashes, f"{line} follows one without a hash"
        hashes = 0
        one = Requirement(line.rstrip("\\ "))
        (specifier,) = one.specifier
        assert specifier.operator == "=="
        found.setdefault(canonicalize_name(one.name), []).append(specifier.version)
    assert hashes
    return found


def pinned() -> Mapping[str, str]:
    lines = (ROOT / "converter" / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def required(name: str) -> list[Requirement]:
    project: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    more = (
        []
        if name == "base"
        else [line for extra in extras if extra not in ("dev", "all") for line in extras[extra]]
    )
    return [Requirement(line) for line in (*project["dependencies"], *more)]


@pytest.mark.parametrize("name", LOCKS)
def test_it_has_everything_that_is_required_in_an_allowed_version(name: str) -> None:
    locked = locked_versions(name)
    for one in required(name):
        if _LEFT_OUT.fullmatch(one.name):
            continue
        versions = locked.get(canonicalize_name(one.name), [])
        assert versions, f"{one.name} is required and not locked: make lock"
        for version in versions:
            assert one.specifier.contains(version), f"{one} is required, {version} is locked: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_its_versions_are_the_tested_ones(name: str) -> None:
    tested = pinned()
    for library, versions in locked_versions(name).items():
        if library in tested:
            assert versions == [tested[library]], f"{library}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_every_tested_library_of_an_extra_is_pinned(name: str) -> None:
    assert {canonicalize_name(one.name) for one in required(name)} <= set(pinned())


@pytest.mark.parametrize("name", LOCKS)
def test_it_names_no_place_and_no_cuda(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert "://" not in text
    assert not [library for library in locked_versions(name) if _LEFT_OUT.fullmatch(library)]


def test_what_is_locked_without_extras_installs_and_is_ready_to_convert(locked: Callable[[str], Any]) -> None:
    environment = locked("base")
    environment.run("doctor", "gguf", "--no-validate")
    assert environment.python("from importlib.util import find_spec; print(find_spec('torch'))") == "None\n"


@pytest.mark.slow
def test_all_that_is_locked_installs_and_every_runtime_loads(locked: Callable[[str], Any]) -> None:
    environment = locked("all")
    told = environment.run("doctor", "all").stdout
    assert not [line for line in told.splitlines() if "not tested" in line or "allowed range" in line]
    assert "2.13.0" in environment.python("import torch; print(torch.__version__)")
