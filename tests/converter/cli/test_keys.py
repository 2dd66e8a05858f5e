"""Keys of report and manifest are added and never renamed: pipelines read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

#: What a conversion of the demonstration model to GGUF with a baseline has had since version 0.1.
KEYS = json.loads((Path(__file__).parent / "keys.json").read_text("utf-8"))


def paths(value: object, path: str = "") -> Iterator[str]:
    """Every key that leads to a value, such as ``targets.gguf.gates[].name``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from paths(inner, f"{path}[]")
    else:
        yield path


def test_every_key_is_still_there(qatconvert, tmp_path):
    output = tmp_path / "out"
    done = qatconvert("gemma4-demo", "--baseline", "naive-q4_0", "-o", output, "-q")
    assert done.returncode == 0, done.stderr
    for name, keys in KEYS.items():
        found = set(paths(json.loads((output / name).read_text("utf-8"))))
        assert len(keys) > 20
        assert sorted(set(keys) - found) == []
