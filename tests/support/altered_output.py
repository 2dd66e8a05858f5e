"""An output directory as somebody leaves it who changes a file and the manifest with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's content in place."""
    path = output / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def list_again(output: Path, *names: str) -> None:
    """Give files their present size and digest in the manifest; new ones are added, absent ones removed."""

    def change(content: dict[str, Any]) -> None:
        kept = [entry for entry in content["artifacts"] if entry["path"] not in names]
        for name in names:
            if (output / name).exists():
                data = (output / name).read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                kept.append({"path": name, "bytes": len(data), "sha256": digest})
        content["artifacts"] = kept

    edit_manifest(output, change)


def tamper(output: Path, *names: str) -> None:
    """Change one bit in the middle of each file, and the manifest so that it says the same."""
    for name in names:
        data = bytearray((output / name).read_bytes())
        data[len(data) // 2] ^= 1
        (output / name).write_bytes(data)
    list_again(output, *names)
