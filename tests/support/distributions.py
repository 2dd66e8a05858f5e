"""Installed distributions that register objects, as ``pip install --target`` leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def write_distribution(
    directory: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Put a distribution into ``directory``, which goes to ``sys.path``, and return it.

    ``entry_points`` maps groups to names and values, ``modules`` names of modules to their source.
    """
    information = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, values in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in values.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in (modules or {}).items():
        (directory / f"{module}.py").write_text(dedent(source))
    return directory
