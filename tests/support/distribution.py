"""Distributions of others, as an installer would leave them: modules and a directory of metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def install(
    place: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Put the distribution ``name`` 1.0 with ``modules`` (text by name) and ``entry_points`` (by group) into
    the directory ``place``; gives the environment in which Python finds it."""
    metadata = place / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())])
        for group, entries in entry_points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    for module, text in modules.items():
        (place / f"{module}.py").write_text(dedent(text))
    return {"PYTHONPATH": str(place)}
