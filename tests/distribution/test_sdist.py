"""The source distribution: what builds the wheel, the same wheel as a checkout's, and nothing else."""

from __future__ import annotations

import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from distribution.conftest import build

#: What builds the packages, and what setuptools adds.
_BESIDE = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    return build("sdist", checkout)


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_holds_what_the_wheel_does_and_what_builds_it(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    packages = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert {name for name in found if not name.startswith("qatconvert.egg-info/")} == packages | _BESIDE


def test_a_wheel_of_it_is_the_wheel_of_a_checkout(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    built, expected = contents(build("wheel", tree)), contents(wheel)
    assert sorted(built) == sorted(expected)
    assert [name for name in built if built[name] != expected[name]] == []
    information = {name.rpartition("/")[2] for name in built if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "entry_points.txt"} <= information
