"""Names that several modules share are spelled in one place each."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from converter import filenames
from converter.checkpoint import canonical_names, special_tokens
from targets.litert import sections, type_names

ROOT = Path(__file__).parents[1]
#: Each table, and the folders whose modules take its names from it.
TABLES = {
    filenames: ("converter", "targets", "validation"),
    special_tokens: ("converter", "targets", "validation"),
    canonical_names: ("converter", "targets", "validation"),
    sections: ("targets", "validation"),
    type_names: ("targets/litert",),
}
#: A list of llama.cpp's own, copied as it is.
FOREIGN = {"targets/gguf/ends.py"}


def spellings(table: ModuleType) -> set[str]:
    return {value for name, value in vars(table).items() if name.isupper() and isinstance(value, str)}


def spelled(source: str, names: set[str]) -> set[str]:
    """Names that are written out in a module's code; what is a part of a longer text is not meant."""
    tree = ast.parse(source)
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {node.value for node in texts if isinstance(node.value, str) and node.value in names}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_no_other_module_spells_a_name_of_the_table(table: ModuleType) -> None:
    own = Path(str(table.__file__))
    found = {
        (str(path.relative_to(ROOT)), name)
        for folder in TABLES[table]
        for path in (ROOT / folder).rglob("*.py")
        if path != own
        for name in spelled(path.read_text("utf-8"), spellings(table))
    }
    assert {one for one in found if one[0] not in FOREIGN} == set()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_no_name_is_in_a_table_twice_or_for_nothing(table: ModuleType) -> None:
    names = {name: value for name, value in vars(table).items() if name.isupper() and isinstance(value, str)}
    assert len(set(names.values())) == len(names)
    modules = [path.read_text("utf-8") for folder in TABLES[table] for path in (ROOT / folder).rglob("*.py")]
    used = {
        alias.name
        for source in modules
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == table.__name__
        for alias in node.names
    }
    inside = {
        node.id
        for node in ast.walk(ast.parse(Path(str(table.__file__)).read_text("utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(names) <= used | inside


def test_a_name_that_is_spelled_again_would_be_found() -> None:
    assert spelled("open(path / 'config.json')", spellings(filenames)) == {"config.json"}
    assert spelled("open(path / CONFIG, 'no config.json')", spellings(filenames)) == set()
