"""The published JSON schemas, and documents held to them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
NAMES = ("report", "manifest", "inspect", "preview", "doctor")
#: Targets that ship: what another package's adds is in no schema.
SHIPPED = {"gguf", "onnx", "litert"}
RUNNERS = {"gguf.llamacpp", "onnx.onnxruntime", "litert.litert"}


@cache
def schema(name: str) -> dict[str, Any]:
    """A published schema."""
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))
    return found


def closed(node: Any) -> Any:
    """A schema that takes no key but those that it names."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


@cache
def validator(name: str, *, strict: bool) -> Draft202012Validator:
    """What checks a document; ``strict`` refuses keys that are not documented."""
    return Draft202012Validator(closed(schema(name)) if strict else schema(name))


def faults(name: str, document: Any, *, strict: bool = True) -> list[str]:
    """What is wrong with a document, a line each."""
    found = validator(name, strict=strict).iter_errors(json.loads(json.dumps(document)))
    return [f"{error.json_path}: {error.message[:300]}" for error in found]


def check(name: str, document: Any) -> None:
    """Fail for a document that is not as its schema says, or, if it is of targets that ship alone in their
    own runtimes, has a key that the schema does not name."""
    validation = document.get("options", {}).get("validation") or {}
    runners = {(entry.get("runtime") or {}).get("runner") for entry in document["targets"].values()}
    own = set(document["targets"]) <= SHIPPED and runners <= {None, *RUNNERS}
    strict = own and not validation.get("runtimes")
    found = faults(name, document, strict=strict)
    assert not found, found


def check_output(directory: Path) -> None:
    """``check`` for the report and the manifest of a conversion, as far as they lie in ``directory``."""
    for name in ("report", "manifest"):
        if (path := directory / f"{name}.json").is_file():
            check(name, json.loads(path.read_text("utf-8")))
