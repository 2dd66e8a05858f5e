"""What is installed: the packages, the checkpoint that ships, and nothing that only this repository needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("converter", "targets", "validation")
#: Bytes of a wheel, most of them the shipped checkpoint.
MOST_BYTES = 4_000_000
_BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree; it is built from a copy, in which setuptools may leave what it makes."""
    directory = tmp_path_factory.mktemp("distribution")
    source, built = directory / "source", directory / "built"
    for name in (*PACKAGES, "tests/checkpoints", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-c", _BUILD, str(built)], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    (made,) = built.glob("*.whl")
    return made


def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def tree(patterns: Iterable[str]) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_it_holds_the_packages_and_the_shipped_checkpoint_and_nothing_else(wheel: Path) -> None:
    code = tree(f"{package}/**/*.py" for package in PACKAGES)
    marks = {f"{package}/py.typed" for package in PACKAGES}
    data = {"converter/checkpoint/chats.json", "converter/constraints.txt", "validation/passages.toml"}
    shipped = tree(["converter/demo/gemma4-demo/*"])
    assert "converter/demo/gemma4-demo/model.safetensors" in shipped
    assert names(wheel) == code | marks | data | shipped


def test_the_generator_and_the_training_stay_in_the_repository(wheel: Path) -> None:
    modules = {PurePosixPath(name).name for name in names(wheel) if name.startswith("converter/demo/")}
    generator = {path.name for path in (ROOT / "tests/checkpoints").glob("*.py")} - {"__init__.py"}
    assert {"generate.py", "train.py"} <= generator
    assert not modules & generator
    assert {path.name for path in (ROOT / "converter/demo").iterdir()} - {"__pycache__"} == {
        "__init__.py",
        "gemma4-demo",
    }


def test_it_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES


def test_what_was_installed_converts_the_shipped_checkpoint(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with ZipFile(wheel) as archive:
        archive.extractall(installed)
    program = "from converter.cli import main; main()"
    arguments = ["gemma4-demo", "--target", "gguf", "--no-validate", "--output", str(tmp_path / "out")]
    # a directory of its own, and the wheel before what this environment may know of the tree
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    told = (
        "import converter, targets, validation as v; print(converter.__file__, targets.__file__, v.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", told],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.count(str(installed)) == 3
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment, check=True)
    assert list((tmp_path / "out" / "gguf").glob("*.gguf"))
