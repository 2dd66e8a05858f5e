"""The published schemas: they hold what is written, refuse what is wrong, and document every key.

``python tests/test_schemas.py`` writes the tables of keys into docs/report.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from converter.pipeline.inspection import inspect
from converter.pipeline.opening import open_model
from support.reports import baseline, entry, gate, report_of
from support.schemas import NAMES, check, check_output, faults, schema

PAGE = Path(__file__).parents[1] / "docs" / "report.md"
_TABLES = re.compile(r"(<!-- keys of (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def objects(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema that a document's value is held to, with its place."""
    yield path, node
    for key, one in node.get("properties", {}).items():
        yield from objects(one, f"{path}.{key}")
    for one in node.get("anyOf", ()):
        yield from objects(one, path)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from objects(node[key], f"{path}[]")


def parts(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    document = schema(name)
    yield from objects(document, name)
    for key, one in document["$defs"].items():
        yield from objects(one, f"{name} {key}")


def told(node: dict[str, Any]) -> str:
    """The type of a value, for a reader."""
    if "$ref" in node:
        return node["$ref"].rpartition("/")[2]
    if "anyOf" in node:
        return " or ".join(told(one) for one in node["anyOf"])
    if "const" in node or "enum" in node:
        return " or ".join(json.dumps(one) for one in node.get("enum", [node.get("const")]))
    types = node.get("type", "anything")
    names = " or ".join(types if isinstance(types, list) else [types])
    if types == "array":
        return f"list of {told(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict) and "properties" not in node:
        return f"{told(node['additionalProperties'])} by name"
    return names


def keys(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and meaning of everything in an object, in order."""
    for key, one in node.get("properties", {}).items():
        yield f"{path}{key}", told(one), one.get("description", "See below.")
        inner = one
        for step in ("items", "additionalProperties"):
            if "properties" not in inner and isinstance(inner.get(step), dict):
                inner = inner[step]
        for each in (inner, *inner.get("anyOf", ())):
            yield from keys(each, f"{path}{key}.")


def tables(name: str) -> str:
    """The keys of a document and of what it is made of, as Markdown."""
    document = schema(name)
    lines = []
    for title, node in ((None, document), *document["$defs"].items()):
        lines += [f"\n`{title}`: {node['description']}\n"] if title else [f"{node['description']}\n"]
        rows = list(keys(node)) or [row for one in node.get("anyOf", ()) for row in keys(one)]
        if rows:
            lines += ["| key | type | meaning |", "|---|---|---|"]
            lines += [f"| `{key}` | {kind} | {text} |" for key, kind, text in rows]
    return "\n".join(lines) + "\n"


def written() -> str:
    """The page with the present tables."""
    return _TABLES.sub(lambda found: found[1] + tables(found[2]), PAGE.read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_documents_every_key(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    found = list(parts(name))
    assert len(found) > 40
    undocumented = [
        f"{path}.{key}"
        for path, node in found
        for key, one in node.get("properties", {}).items()
        if not one.get("description") and "$ref" not in one
    ]
    assert undocumented == []
    assert all(one["description"] for one in schema(name)["$defs"].values())
    for path, node in found:
        for sentence in re.split(r"[.;:] ", node.get("description", "")):
            assert len(sentence.split()) <= 35, path


def test_what_documents_share_they_define_alike() -> None:
    shared: dict[str, Any] = {}
    for name in NAMES:
        for key, node in schema(name)["$defs"].items():
            if key not in ("source", "target"):
                assert shared.setdefault(key, node) == node


def test_the_page_has_every_key() -> None:
    page = PAGE.read_text("utf-8")
    assert {found[2] for found in _TABLES.finditer(page)} == set(NAMES)
    assert page == written()


def test_a_conversion_is_as_the_schemas_say(demo_output: Path) -> None:
    check_output(demo_output)


def test_an_inspection_is_as_its_schema_says() -> None:
    check("inspect", inspect(open_model("gemma4-demo"), ["gguf"]))


def test_a_report_made_by_hand_is_as_its_schema_says() -> None:
    check("report", made())


def made() -> dict[str, Any]:
    other = {"artifact": "x", "passed": False, "error": "killed", "command": "c"}
    unrun = gate("graph_kld", None, None, None, note="did not run: x", allowed=True)
    content = report_of({"gguf": entry(baseline=baseline(), gates=[unrun]), "onnx": other})
    content["source"] |= {"date": None, "stored_as": "numbers", "files": {"read": 3, "compared": 0}}
    return content


def changed(path: str, value: object) -> dict[str, Any]:
    """A right report with another value at one place; ``...`` takes it away."""
    content = made()
    place: Any = content
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2), ("tool", ...), ("model", None), ("targets", []), ("targets.gguf.passed", "yes"),
        ("targets.gguf.artifact", ...), ("targets.gguf.gates.0.limit", "1"),
        ("targets.gguf.gates.0.value", ...),
        ("targets.gguf.weights.exact_fraction", 1.5), ("targets.gguf.weights.blocks", -1),
        ("targets.gguf.weights.per_tensor.0.rms_error", ...), ("targets.gguf.logits.kld.0", "0"),
        ("targets.gguf.logits.same_top.0", 2), ("targets.gguf.baseline.logits.ppl", ...),
        ("source.date", "yesterday"), ("source.files.read", "3"), ("reference.sequences.0.kind", 3),
        ("targets.gguf.runtime.name", ...), ("targets.onnx.error", 1),
    ],
)  # fmt: skip
def test_a_wrong_report_is_refused(path: str, value: object) -> None:
    assert faults("report", made(), strict=False) == []
    (fault,) = faults("report", changed(path, value), strict=False)
    place = re.sub(r"\.(\d)", r"[\1]", f"$.{path}" if value is not ... else f"$.{path}".rpartition(".")[0])
    assert place.startswith(fault.partition(": ")[0])


@pytest.mark.parametrize("path", ["new", "targets.gguf.new", "targets.gguf.gates.0.new", "source.files.new"])
def test_a_key_that_is_not_documented_is_found_and_taken(path: str) -> None:
    assert faults("report", changed(path, 1), strict=False) == []
    (fault,) = faults("report", changed(path, 1))
    assert "'new' was unexpected" in fault


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE}\n")
    PAGE.write_text(written(), "utf-8")
