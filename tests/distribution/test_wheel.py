"""What is installed: the packages, the checkpoint that ships, and nothing that only this repository needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
PACKAGES = ("converter", "targets", "validation")
#: Bytes of a wheel, most of them the shipped checkpoints.
MOST_BYTES = 5_200_000


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


def test_it_holds_the_packages_and_the_shipped_checkpoints_and_nothing_else(wheel: Path) -> None:
    code = tree(f"{package}/**/*.py" for package in PACKAGES)
    marks = {f"{package}/py.typed" for package in PACKAGES}
    data = {"converter/checkpoint/chats.json", "converter/constraints.txt", "validation/passages.toml"}
    shipped = tree(["converter/demo/gemma4-demo/*", "converter/demo/gemma4-demo-mobile/*"])
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
        "gemma4-demo-mobile",
    }


def test_it_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
