"""Arrows between the rooms point one way, and no module needs itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import converter

ROOT = Path(__file__).parents[1]
PACKAGES = ("converter", "targets", "validation")
BENEATH = {"converter.errors", "converter.filenames", "converter.system"}
MODEL = {*BENEATH, "converter.checkpoint"}
#: What each room may import beside itself. A room is a package, or a module that stands alone.
ALLOWED: Mapping[str, set[str]] = {
    "converter.errors": set(),
    "converter.filenames": set(),
    "converter.system": {"converter.errors", "converter.filenames"},
    "converter.names": MODEL,
    "converter.checkpoint": BENEATH,
    "converter.hub": {*BENEATH, "converter.names"},
    "converter.demo": set(),
    "targets": MODEL,
    "validation": {*MODEL, "targets"},
    "converter.pipeline": {*MODEL, "converter.names", "converter.hub", "targets", "validation"},
    "converter.cli": {
        *MODEL,
        "converter.names",
        "converter.hub",
        "converter.pipeline",
        "targets",
        "validation",
    },
}
#: Modules that tests and benchmarks import by their own names, and that do not ship.
UNSHIPPED = {
    path.stem
    for folder in ("tests", "benchmarks")
    for path in (ROOT / folder).iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
} | {"tests", "benchmarks"}


def modules() -> dict[str, Path]:
    """Every module by its name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of the project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        yield from (name for name in names if name in known)


def outside(source: str) -> set[str]:
    """Modules of tests and benchmarks that a source imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found & UNSHIPPED


def room(module: str) -> str:
    """The room that a module stands in."""
    return next(name for name in (module.rsplit(".", depth)[0] for depth in range(9)) if name in ALLOWED)


KNOWN = modules()
USES = {name: set(imported(path, KNOWN)) for name, path in KNOWN.items()}


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"converter"}))
def test_a_module_imports_what_its_room_may(name: str) -> None:
    own = room(name)
    assert {room(other) for other in USES[name]} <= {own, *ALLOWED[own]}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_module_imports_nothing_that_only_the_repository_has(name: str) -> None:
    assert not outside(KNOWN[name].read_text("utf-8"))


def test_an_import_of_the_generator_would_be_found() -> None:
    assert {"checkpoints", "support", "fuzzing", "digests", "generator"} <= UNSHIPPED
    assert outside("def f():\n    from checkpoints.generate import write_checkpoint") == {"checkpoints"}
    assert outside("import support.greedy, numpy") == {"support"}
    assert not outside("import converter.checkpoint\nfrom . import checkpoints")


def test_no_module_needs_itself() -> None:
    try:
        TopologicalSorter(USES).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


def test_the_face_loads_what_is_asked_for_alone() -> None:
    loaded = "sorted(name for name in sys.modules if name.split('.')[0] in packages)"
    code = (
        "import sys, converter\n"
        f"packages = {('numpy', *PACKAGES)}\n"
        f"print({loaded}, end=' ')\n"
        "from converter import Conversion, Outcome, convert, inspect, open_model, validate, verify\n"
        "found = (convert, inspect, open_model, validate, verify)\n"
        "print(sorted({one.__module__.rpartition('.')[2] for one in found}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = "['conversion', 'inspection', 'opening', 'validation', 'verification']"
    assert done.stdout == f"['converter'] {modules}\n"
    assert {"convert", "verify"} <= set(dir(converter))
    with pytest.raises(AttributeError, match="no attribute 'release'"):
        converter.release  # noqa: B018
