"""What the package and each of its extras take to download and on the disk, as a Markdown table.

    python benchmarks/installed_sizes.py WHEEL --write benchmarks/installed_sizes.json
    python benchmarks/installed_sizes.py --recorded

Each is installed by uv into an environment of its own, with the versions of ``converter/constraints.txt``,
and its files are counted. Downloads are those of ``pip download``. pip also compiles the modules that it
installs; how much they add is measured in the environment that has everything. PyTorch is whichever build is
found for its version: set ``UV_FIND_LINKS`` and ``PIP_FIND_LINKS``, or the indexes, for the CPU build.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

from converter.system.amounts import amount

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
CONSTRAINTS = ROOT / "converter" / "constraints.txt"
EXTRAS = ("", "llamacpp", "reference", "onnx", "litert", "llamacpp,reference", "all")


def downloads(wheel: Path, directory: Path) -> dict[str, int]:
    """Bytes of the file that is downloaded for each distribution, everything taken together."""
    words = ["-m", "pip", "download", "--quiet", "--constraint", str(CONSTRAINTS), "--dest", str(directory)]
    subprocess.run([sys.executable, *words, f"{wheel}[all]"], check=True)
    found = {}
    for path in directory.iterdir():
        parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
        found[canonicalize_name(parse(path.name)[0])] = path.stat().st_size
    return found


def install(wheel: Path, extras: str, directory: Path, *words: str) -> list[Distribution]:
    """What a new environment has, in which the wheel and its extras were installed."""
    from uv import find_uv_bin

    environment = directory / (extras or "base")
    variables = {**os.environ, "UV_CONSTRAINT": str(CONSTRAINTS)}
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    place = ["--python", str(environment)]
    for command in (["venv", "--clear", str(environment)], ["pip", "install", *place, *words, wanted]):
        subprocess.run([find_uv_bin(), *command, "--quiet"], check=True, env=variables)
    (packages,) = environment.glob("lib/python*/site-packages")
    return list(distributions(path=[str(packages)]))


def name(distribution: Distribution) -> str:
    """What a distribution is called in every other place."""
    return canonicalize_name(distribution.metadata["Name"])


def files(distribution: Distribution) -> list[Path]:
    """The files that were installed for a distribution."""
    return [Path(str(one.locate())) for one in distribution.files or ()]


def size(paths: Sequence[Path]) -> int:
    """Bytes of those of ``paths`` that are there."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def compiled(distribution: Distribution) -> int:
    """Bytes of the compiled modules of a distribution."""
    return size([Path(cache_from_source(str(path))) for path in files(distribution) if path.suffix == ".py"])


def measure(wheel: Path) -> dict[str, Any]:
    """What is recorded: bytes for each of ``EXTRAS``, alone."""
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        fetched = downloads(wheel, directory / "downloads")
        modules = {name(one): compiled(one) for one in install(wheel, "all", directory, "--compile-bytecode")}
        for extras in EXTRAS:
            found = {name(one): size(files(one)) for one in install(wheel, extras, directory)}
            measured.append(
                {
                    "extras": extras,
                    "packages": len(found),
                    "download": sum(fetched[one] for one in found),
                    "installed": sum(found.values()),
                    "compiled": sum(modules[one] for one in found),
                    "torch": found.get("torch", 0) + (modules["torch"] if "torch" in found else 0),
                }
            )
    return {"python": platform.python_version(), "machine": platform.machine(), "measured": measured}


def table(record: Mapping[str, Any]) -> str:
    """What was measured, as a Markdown table."""
    lines = ["| extras | packages | download | on the disk | of which PyTorch |", "|---|---|---|---|---|"]
    for one in record["measured"]:
        shown = f"`{re.sub(',', '`, `', one['extras'])}`" if one["extras"] else "none"
        whole = amount(one["installed"] + one["compiled"])
        torch = amount(one["torch"]) if one["torch"] else "-"
        lines.append(f"| {shown} | {one['packages']} | {amount(one['download'])} | {whole} | {torch} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and record, or take what was recorded, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, nargs="?", help="a wheel of this repository")
    parser.add_argument("--write", type=Path, help="where the figures are recorded")
    parser.add_argument("--recorded", action="store_true", help="print what was recorded, measure nothing")
    given = parser.parse_args()
    if given.recorded == (given.wheel is not None):
        parser.error("give a WHEEL to measure, or --recorded")
    record = json.loads(RECORD.read_text("utf-8")) if given.recorded else measure(given.wheel.resolve())
    if given.write is not None:
        given.write.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
